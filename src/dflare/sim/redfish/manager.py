"""The Manager (the BMC itself) and its virtual media, shown under the system too."""

from datetime import UTC, datetime

from dflare.sim.redfish.bmc import (
    NO_CONTENT,
    OK,
    Answer,
    Bmc,
    Document,
    collection,
    link,
    links,
    resource,
    stamp,
)
from dflare.sim.redfish.messages import RedfishError
from dflare.sim.redfish.routing import RouteTable, missing
from dflare.sim.redfish.schemas import ROOT
from dflare.sim.redfish.vendor import MediaSlot

table = RouteTable()
actions = RouteTable()
"""The drives' actions, for vendors that have them."""
changes = RouteTable()
"""The drives as they can be changed, for vendors that have no actions; goes before ``table``."""

_MANAGER = f"{ROOT}/Managers/<manager>"
_SYSTEM = f"{ROOT}/Systems/<system>"
_INSERT = "VirtualMedia.InsertMedia"
_EJECT = "VirtualMedia.EjectMedia"
_PARAMETERS = {
    "Image": str,
    "Inserted": bool,
    "WriteProtected": bool,
    "TransferMethod": str,
    "TransferProtocolType": str,
    "UserName": str,
    "Password": str,
}
"""The parameters of InsertMedia (VirtualMedia 1.6.4); a vendor takes all or some of them."""


@table.get(f"{ROOT}/Managers", "ManagerCollection")
def managers(bmc: Bmc) -> Document:
    """The one manager."""
    members = [link(bmc.manager_path)]
    return collection(f"{ROOT}/Managers", "ManagerCollection", "Managers", members)


@table.get(_MANAGER, "Manager")
def manager(bmc: Bmc) -> Document:
    """The BMC."""
    path = bmc.manager_path
    return resource(
        path,
        "Manager",
        "Manager",
        ManagerType="BMC",
        Manufacturer=bmc.vendor.manufacturer,
        Model=bmc.vendor.bmc_model,
        FirmwareVersion=bmc.vendor.bmc_version,
        UUID=bmc.host.node.uuid,
        PowerState="On",
        DateTime=stamp(datetime.now(UTC)),
        DateTimeLocalOffset="+00:00",
        Status=OK,
        NetworkProtocol=link(f"{path}/NetworkProtocol"),
        VirtualMedia=link(f"{path}/VirtualMedia"),
        Links={
            "ManagerForServers": [link(bmc.system_path)],
            "ManagerForChassis": [link(bmc.chassis_path)],
        },
        Actions={
            "#Manager.Reset": {
                "target": f"{path}/Actions/Manager.Reset",
                "ResetType@Redfish.AllowableValues": ["GracefulRestart"],
            }
        },
    )


@table.post(f"{_MANAGER}/Actions/Manager.Reset", "Manager")
def reset_manager(bmc: Bmc, body: Document) -> Answer:
    """Restart the BMC: sessions are gone, the host goes on."""
    asked = body.get("ResetType", "GracefulRestart")
    if asked != "GracefulRestart":
        raise RedfishError(
            400, "ActionParameterValueNotInList", (str(asked), "ResetType", "Manager.Reset")
        )
    bmc.sessions.clear()
    return NO_CONTENT


@table.get(f"{_MANAGER}/NetworkProtocol", "ManagerNetworkProtocol")
def network_protocol(bmc: Bmc) -> Document:
    """What the BMC listens on."""
    return resource(
        f"{bmc.manager_path}/NetworkProtocol",
        "ManagerNetworkProtocol",
        "Manager Network Protocol",
        HostName=f"bmc-{bmc.host.name}",
        HTTPS={"ProtocolEnabled": True, "Port": 443},
        HTTP={"ProtocolEnabled": False, "Port": 80},
        IPMI={"ProtocolEnabled": False, "Port": 623},
        Status=OK,
    )


@table.get(f"{_MANAGER}/VirtualMedia", "VirtualMediaCollection")
def media_of_manager(bmc: Bmc) -> Document:
    """The virtual drives under the manager."""
    path = f"{bmc.manager_path}/VirtualMedia"
    members = links(path, [slot.id for slot in bmc.vendor.media.slots])
    return collection(path, "VirtualMediaCollection", "Virtual Media", members)


@table.get(f"{_SYSTEM}/VirtualMedia", "VirtualMediaCollection")
def media_of_system(bmc: Bmc) -> Document:
    """The same virtual drives under the system, where it has them too."""
    path = f"{bmc.system_path}/VirtualMedia"
    if not bmc.vendor.media.under_system:
        raise missing(path)
    members = links(path, [slot.system_id for slot in bmc.vendor.media.slots])
    return collection(path, "VirtualMediaCollection", "Virtual Media", members)


@table.get(f"{_MANAGER}/VirtualMedia/{{slot}}", "VirtualMedia")
@changes.get(f"{_MANAGER}/VirtualMedia/{{slot}}", "VirtualMedia")
def manager_slot(bmc: Bmc, slot_id: str) -> Document:
    """One virtual drive."""
    return _document(bmc, _slot(bmc, slot_id, of_system=False), of_system=False)


@table.get(f"{_SYSTEM}/VirtualMedia/{{slot}}", "VirtualMedia")
@changes.get(f"{_SYSTEM}/VirtualMedia/{{slot}}", "VirtualMedia")
def system_slot(bmc: Bmc, slot_id: str) -> Document:
    """One virtual drive."""
    return _document(bmc, _slot(bmc, slot_id, of_system=True), of_system=True)


@actions.post(f"{_MANAGER}/VirtualMedia/{{slot}}/Actions/{_INSERT}", "VirtualMedia")
def insert_at_manager(bmc: Bmc, slot_id: str, body: Document) -> Answer:
    """Insert an image."""
    return _insert(bmc, _slot(bmc, slot_id, of_system=False), body)


@actions.post(f"{_SYSTEM}/VirtualMedia/{{slot}}/Actions/{_INSERT}", "VirtualMedia")
def insert_at_system(bmc: Bmc, slot_id: str, body: Document) -> Answer:
    """Insert an image."""
    return _insert(bmc, _slot(bmc, slot_id, of_system=True), body)


@actions.post(f"{_MANAGER}/VirtualMedia/{{slot}}/Actions/{_EJECT}", "VirtualMedia")
def eject_at_manager(bmc: Bmc, slot_id: str, _body: Document) -> Answer:
    """Eject what is in the drive."""
    return _eject(bmc, _slot(bmc, slot_id, of_system=False))


@actions.post(f"{_SYSTEM}/VirtualMedia/{{slot}}/Actions/{_EJECT}", "VirtualMedia")
def eject_at_system(bmc: Bmc, slot_id: str, _body: Document) -> Answer:
    """Eject what is in the drive."""
    return _eject(bmc, _slot(bmc, slot_id, of_system=True))


@changes.patch(f"{_MANAGER}/VirtualMedia/{{slot}}", "VirtualMedia")
def change_at_manager(bmc: Bmc, slot_id: str, body: Document) -> Answer:
    """Insert or eject, where a change of the drive does that."""
    return _change(bmc, _slot(bmc, slot_id, of_system=False), body)


@changes.patch(f"{_SYSTEM}/VirtualMedia/{{slot}}", "VirtualMedia")
def change_at_system(bmc: Bmc, slot_id: str, body: Document) -> Answer:
    """Insert or eject, where a change of the drive does that."""
    return _change(bmc, _slot(bmc, slot_id, of_system=True), body)


def _slot(bmc: Bmc, slot_id: str, *, of_system: bool) -> MediaSlot:
    shown = bmc.vendor.media.slots if bmc.vendor.media.under_system or not of_system else ()
    for slot in shown:
        if slot_id == (slot.system_id if of_system else slot.id):
            return slot
    base = bmc.system_path if of_system else bmc.manager_path
    raise missing(f"{base}/VirtualMedia/{slot_id}")


def _document(bmc: Bmc, slot: MediaSlot, *, of_system: bool) -> Document:
    media = bmc.host.media[slot.id]
    path = (
        f"{bmc.system_path}/VirtualMedia/{slot.system_id}"
        if of_system
        else f"{bmc.manager_path}/VirtualMedia/{slot.id}"
    )
    return resource(
        path,
        "VirtualMedia",
        f"Virtual {slot.id}",
        MediaTypes=list(slot.media_types),
        Image=media.image,
        ImageName=media.image.rsplit("/", 1)[1] if media.image else None,
        Inserted=media.inserted,
        WriteProtected=media.write_protected,
        ConnectedVia="URI" if media.inserted else "NotConnected",
        TransferMethod="Stream",
        TransferProtocolType=media.image.split(":", 1)[0].upper() if media.image else None,
        **_actions(bmc, path),
    )


def _change(bmc: Bmc, slot: MediaSlot, body: Document) -> Answer:
    if body.get("Inserted") is False or ("Image" in body and body["Image"] is None):
        return _eject(bmc, slot)
    return _insert(bmc, slot, body)


def _actions(bmc: Bmc, path: str) -> Document:
    """The drive's two actions, where it has them."""
    if bmc.vendor.media.by_patch:
        return {}
    return {
        "Actions": {
            f"#{_INSERT}": {"target": f"{path}/Actions/{_INSERT}"},
            f"#{_EJECT}": {"target": f"{path}/Actions/{_EJECT}"},
        }
    }


def _insert(bmc: Bmc, slot: MediaSlot, body: Document) -> Answer:
    for name, value in body.items():
        if name not in _PARAMETERS or name not in bmc.vendor.media.insert_takes:
            raise RedfishError(400, "ActionParameterNotSupported", (name, _INSERT))
        if not isinstance(value, _PARAMETERS[name]):
            raise RedfishError(400, "ActionParameterValueFormatError", (str(value), name, _INSERT))
    for name in bmc.vendor.media.insert_needs:
        if body.get(name) is None:
            raise RedfishError(400, "ActionParameterMissing", (_INSERT, name))
    url = str(body["Image"])
    if not url.startswith(("http://", "https://")):
        raise RedfishError(400, "ActionParameterValueFormatError", (url, "Image", _INSERT))
    media = bmc.host.media[slot.id]
    if media.inserted:
        raise RedfishError(409, "ResourceInUse")
    media.image, media.inserted = url, body.get("Inserted") is not False
    media.write_protected = body.get("WriteProtected") is not False
    bmc.host.lab.log.append("media_inserted", bmc.host.name, slot=slot.id, image=url)
    return bmc.done


def _eject(bmc: Bmc, slot: MediaSlot) -> Answer:
    media = bmc.host.media[slot.id]
    if media.image is None and bmc.vendor.media.refuses_empty_eject:
        raise RedfishError(400, "NoVirtualMediaConnectionAvailable")
    if media.image is not None:
        bmc.host.lab.log.append("media_ejected", bmc.host.name, slot=slot.id)
    media.image, media.inserted, media.write_protected = None, False, True
    return bmc.done
