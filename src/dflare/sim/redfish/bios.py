"""BIOS attributes: the Bios resource, its settings object, and the attribute registry."""

from typing import cast

from dflare.sim.redfish.bmc import Answer, Bmc, Document, etag_of, link, resource, stamp
from dflare.sim.redfish.messages import RedfishError, message, terse_body
from dflare.sim.redfish.routing import RouteTable
from dflare.sim.redfish.schemas import ROOT, odata_type
from dflare.sim.redfish.service import task_document
from dflare.sim.redfish.vendor import ActionAnswer, BiosAttribute

table = RouteTable()

_BIOS = f"{ROOT}/Systems/<system>/<bios>"
_APPLY = "@Redfish.SettingsApplyTime"


@table.get(_BIOS, "Bios")
def bios(bmc: Bmc) -> Document:
    """The attributes in force, and where changes go."""
    path = bmc.bios_path
    return resource(
        path,
        "Bios",
        "BIOS Configuration",
        AttributeRegistry=bmc.vendor.registry_id,
        Attributes=bmc.host.bios.attributes(),
        Actions={"#Bios.ResetBios": {"target": f"{path}/{bmc.vendor.bios.reset}"}},
        **{"@Redfish.Settings": _settings_annotation(bmc)},
    )


@table.get(f"{_BIOS}/<settings>", "Bios")
def settings(bmc: Bmc) -> Document:
    """The attributes that wait for the next reset, or all as they will then be."""
    return resource(
        f"{bmc.bios_path}/{bmc.vendor.bios.settings}",
        "Bios",
        "BIOS Configuration Pending Settings",
        AttributeRegistry=bmc.vendor.registry_id,
        Attributes=_waiting(bmc),
    )


@table.patch(f"{_BIOS}/<settings>", "Bios")
def stage(bmc: Bmc, body: Document) -> Answer:
    """Let attributes wait for the next reset; the answer names the job that will apply them, where
    there are such jobs."""
    for name in body:
        if name not in ("Attributes", _APPLY):
            raise RedfishError(400, "PropertyUnknown", (name,), (name,))
    _check_apply_time(body.get(_APPLY))
    wanted = body.get("Attributes")
    if not isinstance(wanted, dict):
        raise RedfishError(400, "PropertyMissing", ("Attributes",), ("Attributes",))
    attributes = _checked(bmc, cast("Document", wanted))
    job = bmc.host.bios.stage(attributes, bmc.host.lab.clock.utc(), bmc.vendor.bios.job)
    if job is None:
        terse = bmc.vendor.action_answer is ActionAnswer.EXTENDED
        return Answer(200, terse_body("SystemResetRequired")) if terse else bmc.done
    document = task_document(job)
    return Answer(202, document, {"Location": str(document["@odata.id"])})


@table.post(f"{_BIOS}/<reset>", "Bios")
def reset_bios(bmc: Bmc, _body: Document) -> Answer:
    """Go back to the factory's attributes at the next reset."""
    bmc.host.bios.pending = {}
    bmc.host.bios.reset_pending = True
    if bmc.vendor.action_answer is ActionAnswer.EXTENDED:
        return Answer(200, terse_body("SystemResetRequired"))
    return Answer(200, {"@Message.ExtendedInfo": [message("Success")]})


@table.get("<registry>", "AttributeRegistry")
def registry(bmc: Bmc) -> Document:
    """The attribute registry: names, types and allowed values."""
    version = bmc.vendor.registry_id.split(".", 1)[1].removeprefix("v").replace("_", ".")
    return {
        "@odata.id": bmc.vendor.registry_path,
        "@odata.type": odata_type("AttributeRegistry"),
        "Id": bmc.vendor.registry_id,
        "Name": "BIOS Attribute Registry",
        "Language": "en",
        "OwningEntity": bmc.vendor.manufacturer,
        "RegistryVersion": version,
        "SupportedSystems": [
            {
                "ProductName": bmc.host.node.model,
                "FirmwareVersion": bmc.vendor.bios_version,
            }
        ],
        "RegistryEntries": {
            "Attributes": [
                _entry(number, attribute) for number, attribute in enumerate(bmc.vendor.attributes)
            ],
            "Dependencies": [
                _dependency(attribute.name, *attribute.unlocked_by)
                for attribute in bmc.vendor.attributes
                if attribute.unlocked_by
            ],
        },
    }


def _settings_annotation(bmc: Bmc) -> Document:
    annotation: Document = {
        "@odata.type": odata_type("Settings"),
        "SettingsObject": link(f"{bmc.bios_path}/{bmc.vendor.bios.settings}"),
        "SupportedApplyTimes": ["OnReset"],
    }
    if bmc.vendor.needs_if_match:
        # Sushy takes the value for If-Match from here.
        annotation["ETag"] = etag_of(settings(bmc))
    if bmc.host.bios.applied_at is not None:
        annotation["Time"] = stamp(bmc.host.bios.applied_at)
        annotation["Messages"] = [message("Success")]
    return annotation


def _check_apply_time(value: object) -> None:
    if value is None:
        return
    time = cast("Document", value).get("ApplyTime") if isinstance(value, dict) else value
    if time != "OnReset":
        raise RedfishError(400, "PropertyValueNotInList", (str(time), "ApplyTime"), (_APPLY,))


def _checked(bmc: Bmc, wanted: Document) -> dict[str, str | int]:
    known = {attribute.name: attribute for attribute in bmc.vendor.attributes}
    checked: dict[str, str | int] = {}
    for name, value in wanted.items():
        where = (f"Attributes/{name}",)
        attribute = known.get(name)
        if attribute is None:
            raise RedfishError(400, "PropertyUnknown", (name,), where)
        if attribute.read_only or not _unlocked(bmc, attribute, wanted):
            raise RedfishError(400, "PropertyNotWritable", (name,), where)
        if attribute.bounds is not None:
            if not isinstance(value, int) or isinstance(value, bool):
                raise RedfishError(400, "PropertyValueTypeError", (str(value), name), where)
            if not attribute.bounds[0] <= value <= attribute.bounds[1]:
                raise RedfishError(400, "PropertyValueOutOfRange", (str(value), name), where)
            checked[name] = value
        elif not isinstance(value, str):
            raise RedfishError(400, "PropertyValueTypeError", (str(value), name), where)
        elif attribute.values and value not in attribute.values:
            raise RedfishError(400, "PropertyValueNotInList", (value, name), where)
        else:
            checked[name] = value
    return checked


def _waiting(bmc: Bmc) -> dict[str, str | int]:
    bios = bmc.host.bios
    if not bmc.vendor.bios.shows_all:
        return dict(bios.pending)
    before = bios.defaults if bios.reset_pending else bios.attributes()
    return {**before, **bios.pending}


def _unlocked(bmc: Bmc, attribute: BiosAttribute, wanted: Document) -> bool:
    """Whether the attribute that this one depends on has, or is now given, the value for it."""
    if attribute.unlocked_by is None:
        return True
    name, value = attribute.unlocked_by
    bios = bmc.host.bios
    return (wanted.get(name) or bios.pending.get(name) or bios.attributes()[name]) == value


def _entry(number: int, attribute: BiosAttribute) -> Document:
    entry: Document = {
        "AttributeName": attribute.name,
        "DisplayName": attribute.label,
        "Type": attribute.kind,
        "ReadOnly": attribute.read_only,
        "Immutable": attribute.read_only,
        "Hidden": False,
        "DisplayOrder": number,
        "ResetRequired": True,
    }
    if attribute.default != "":
        entry["DefaultValue"] = attribute.default
    if attribute.values:
        entry["Value"] = [
            {"ValueName": value, "ValueDisplayName": value} for value in attribute.values
        ]
    if attribute.bounds is not None:
        entry["LowerBound"], entry["UpperBound"] = attribute.bounds
        entry["ScalarIncrement"] = 1
    return entry


def _dependency(name: str, on: str, value: str) -> Document:
    """An attribute that is read-only unless another one has a value (AttributeRegistry, Map)."""
    return {
        "DependencyFor": name,
        "Type": "Map",
        "Dependency": {
            "MapFrom": [
                {
                    "MapFromAttribute": on,
                    "MapFromProperty": "CurrentValue",
                    "MapFromCondition": "NEQ",
                    "MapFromValue": value,
                }
            ],
            "MapToAttribute": name,
            "MapToProperty": "ReadOnly",
            "MapToValue": True,
        },
    }
