"""ServiceRoot and the services beside it: sessions, accounts, tasks, updates, registries."""

from dflare.sim.firmware import BiosJob
from dflare.sim.redfish import messages
from dflare.sim.redfish.bmc import (
    NO_CONTENT,
    OK,
    Answer,
    Bmc,
    Document,
    Session,
    collection,
    link,
    links,
    resource,
    stamp,
)
from dflare.sim.redfish.messages import RedfishError
from dflare.sim.redfish.routing import RouteTable, missing
from dflare.sim.redfish.schemas import (
    COLLECTIONS,
    ROOT,
    VERSIONS,
    odata_type,
    published_json,
    schema_id,
)

table = RouteTable()

_SESSIONS = f"{ROOT}/SessionService/Sessions"
_ACCOUNTS = f"{ROOT}/AccountService/Accounts"
_ROLES = f"{ROOT}/AccountService/Roles"
_TASKS = f"{ROOT}/TaskService/Tasks"
_FIRMWARE = f"{ROOT}/UpdateService/FirmwareInventory"
_SESSION_TIMEOUT_S = 1800
_PRIVILEGES: dict[str, list[str]] = {
    "Administrator": [
        "Login",
        "ConfigureManager",
        "ConfigureUsers",
        "ConfigureSelf",
        "ConfigureComponents",
    ],
    "Operator": ["Login", "ConfigureSelf", "ConfigureComponents"],
    "ReadOnly": ["Login", "ConfigureSelf"],
}


@table.get("/redfish", "OData", open_to_all=True)
def versions(_bmc: Bmc) -> Document:
    """DSP0266, 7.2: the protocol's versions."""
    return {"v1": f"{ROOT}/"}


@table.get(ROOT, "ServiceRoot", open_to_all=True)
def service_root(bmc: Bmc) -> Document:
    """ServiceRoot."""
    return {
        "@odata.id": f"{ROOT}/",
        "@odata.type": odata_type("ServiceRoot"),
        "Id": "RootService",
        "Name": "Root Service",
        "RedfishVersion": bmc.vendor.redfish_version,
        "UUID": bmc.host.node.uuid,
        "Vendor": bmc.vendor.maker,
        "Product": bmc.vendor.bmc_product,
        "ProtocolFeaturesSupported": {
            "ExpandQuery": {
                "ExpandAll": bmc.vendor.expands,
                "Levels": bmc.vendor.expands,
                "Links": False,
                **({"MaxLevels": 1} if bmc.vendor.expands else {}),
                "NoLinks": bmc.vendor.expands,
            },
            "FilterQuery": False,
            "SelectQuery": False,
            "ExcerptQuery": False,
            "OnlyMemberQuery": False,
        },
        "Systems": link(f"{ROOT}/Systems"),
        "Chassis": link(f"{ROOT}/Chassis"),
        "Managers": link(f"{ROOT}/Managers"),
        "Tasks": link(f"{ROOT}/TaskService"),
        "SessionService": link(f"{ROOT}/SessionService"),
        "AccountService": link(f"{ROOT}/AccountService"),
        "EventService": link(f"{ROOT}/EventService"),
        "UpdateService": link(f"{ROOT}/UpdateService"),
        "Registries": link(f"{ROOT}/Registries"),
        "JsonSchemas": link(f"{ROOT}/JsonSchemas"),
        "Links": {"Sessions": link(_SESSIONS)},
    }


@table.get(f"{ROOT}/odata", "OData", open_to_all=True)
def odata(_bmc: Bmc) -> Document:
    """The OData service document (DSP0266, 8.4.2)."""
    names = ("Systems", "Chassis", "Managers", "SessionService", "AccountService", "UpdateService")
    return {
        "@odata.context": f"{ROOT}/$metadata",
        "value": [
            {"name": "Service", "kind": "Singleton", "url": f"{ROOT}/"},
            *({"name": n, "kind": "Singleton", "url": f"{ROOT}/{n}"} for n in names),
        ],
    }


@table.get(f"{ROOT}/SessionService", "SessionService")
def session_service(_bmc: Bmc) -> Document:
    """SessionService."""
    return resource(
        f"{ROOT}/SessionService",
        "SessionService",
        "Session Service",
        ServiceEnabled=True,
        SessionTimeout=_SESSION_TIMEOUT_S,
        Sessions=link(_SESSIONS),
        Status=OK,
    )


@table.get(_SESSIONS, "SessionCollection")
def sessions(bmc: Bmc) -> Document:
    """The sessions that are open."""
    names = [session.id for session in bmc.sessions.values()]
    return collection(_SESSIONS, "SessionCollection", "Sessions", links(_SESSIONS, names))


@table.post(_SESSIONS, "SessionCollection")
def log_in(bmc: Bmc, body: Document) -> Answer:
    """Open a session (DSP0266, 13.3.4.2): X-Auth-Token carries its token."""
    for name in ("UserName", "Password"):
        if name not in body:
            raise RedfishError(400, "PropertyMissing", (name,), (name,))
    session = bmc.login(body["UserName"], body["Password"])
    headers = {"X-Auth-Token": session.token, "Location": f"{_SESSIONS}/{session.id}"}
    return Answer(201, _session_document(session), headers)


@table.get(f"{_SESSIONS}/{{session}}", "Session")
def session(bmc: Bmc, session_id: str) -> Document:
    """One session."""
    return _session_document(_find_session(bmc, session_id))


@table.delete(f"{_SESSIONS}/{{session}}", "Session")
def log_out(bmc: Bmc, session_id: str) -> Answer:
    """Close a session."""
    del bmc.sessions[_find_session(bmc, session_id).token]
    return NO_CONTENT


@table.get(f"{ROOT}/AccountService", "AccountService")
def account_service(_bmc: Bmc) -> Document:
    """AccountService."""
    return resource(
        f"{ROOT}/AccountService",
        "AccountService",
        "Account Service",
        ServiceEnabled=True,
        MinPasswordLength=8,
        MaxPasswordLength=127,
        Accounts=link(_ACCOUNTS),
        Roles=link(_ROLES),
        Status=OK,
    )


@table.get(_ACCOUNTS, "ManagerAccountCollection")
def accounts(bmc: Bmc) -> Document:
    """The accounts: one administrator."""
    return collection(
        _ACCOUNTS, "ManagerAccountCollection", "Accounts", links(_ACCOUNTS, [bmc.vendor.account_id])
    )


@table.get(f"{_ACCOUNTS}/<account>", "ManagerAccount")
def account(bmc: Bmc) -> Document:
    """The administrator's account; the password reads as null."""
    return resource(
        f"{_ACCOUNTS}/{bmc.vendor.account_id}",
        "ManagerAccount",
        "User Account",
        UserName=bmc.username,
        Password=None,
        RoleId="Administrator",
        Enabled=True,
        Locked=False,
        AccountTypes=["Redfish"],
        PasswordChangeRequired=False,
        Links={"Role": link(f"{_ROLES}/Administrator")},
    )


@table.patch(f"{_ACCOUNTS}/<account>", "ManagerAccount")
def change_account(bmc: Bmc, body: Document) -> Answer:
    """Change the password."""
    for name in body:
        if name != "Password":
            raise RedfishError(400, "PropertyNotWritable", (name,), (name,))
    password = body.get("Password")
    if not isinstance(password, str) or not 8 <= len(password) <= 127:
        raise RedfishError(400, "PropertyValueTypeError", ("******", "Password"), ("Password",))
    bmc.set_password(password)
    bmc.sessions.clear()
    return NO_CONTENT


@table.get(_ROLES, "RoleCollection")
def roles(_bmc: Bmc) -> Document:
    """The predefined roles."""
    return collection(_ROLES, "RoleCollection", "Roles", links(_ROLES, list(_PRIVILEGES)))


@table.get(f"{_ROLES}/{{role}}", "Role")
def role(_bmc: Bmc, name: str) -> Document:
    """One role with its privileges (DSP0266, 13.6)."""
    if name not in _PRIVILEGES:
        raise missing(f"{_ROLES}/{name}")
    return resource(
        f"{_ROLES}/{name}",
        "Role",
        f"{name} Role",
        RoleId=name,
        IsPredefined=True,
        AssignedPrivileges=_PRIVILEGES[name],
    )


@table.get(f"{ROOT}/TaskService", "TaskService")
def task_service(_bmc: Bmc) -> Document:
    """TaskService."""
    return resource(
        f"{ROOT}/TaskService",
        "TaskService",
        "Task Service",
        ServiceEnabled=True,
        CompletedTaskOverWritePolicy="Oldest",
        LifeCycleEventOnTaskStateChange=False,
        Tasks=link(_TASKS),
        Status=OK,
    )


@table.get(_TASKS, "TaskCollection")
def tasks(bmc: Bmc) -> Document:
    """BIOS jobs, those that wait for a reset and the last ones done."""
    names = [job.id for job in bmc.host.bios.jobs]
    return collection(_TASKS, "TaskCollection", "Tasks", links(_TASKS, names))


@table.get(f"{_TASKS}/{{task}}", "Task")
def task(bmc: Bmc, task_id: str) -> Document:
    """One BIOS job."""
    return task_document(_find_job(bmc, task_id))


def task_document(job: BiosJob) -> Document:
    """The Task of a BIOS job."""
    document = resource(
        f"{_TASKS}/{job.id}",
        "Task",
        "BIOS configuration",
        TaskState="Pending" if job.ended_at is None else "Completed",
        TaskStatus="OK",
        StartTime=stamp(job.created_at),
        PercentComplete=0 if job.ended_at is None else 100,
        Messages=[] if job.ended_at is None else [messages.message("Success")],
    )
    if job.ended_at is not None:
        document["EndTime"] = stamp(job.ended_at)
    return document


@table.get(f"{ROOT}/EventService", "EventService")
def event_service(_bmc: Bmc) -> Document:
    """EventService: there, and switched off."""
    return resource(
        f"{ROOT}/EventService",
        "EventService",
        "Event Service",
        ServiceEnabled=False,
        Subscriptions=link(f"{ROOT}/EventService/Subscriptions"),
        Status={"State": "Disabled", "Health": "OK"},
    )


@table.get(f"{ROOT}/EventService/Subscriptions", "EventDestinationCollection")
def subscriptions(_bmc: Bmc) -> Document:
    """No subscriptions."""
    path = f"{ROOT}/EventService/Subscriptions"
    return collection(path, "EventDestinationCollection", "Event Subscriptions", [])


@table.get(f"{ROOT}/UpdateService", "UpdateService")
def update_service(_bmc: Bmc) -> Document:
    """UpdateService: what is installed; updates are not offered."""
    return resource(
        f"{ROOT}/UpdateService",
        "UpdateService",
        "Update Service",
        ServiceEnabled=True,
        FirmwareInventory=link(_FIRMWARE),
        Status=OK,
    )


def _firmware(bmc: Bmc) -> dict[str, tuple[str, str]]:
    return {
        "Installed-BIOS": ("BIOS", bmc.vendor.bios_version),
        "Installed-BMC": (bmc.vendor.bmc_product, bmc.vendor.bmc_version),
    }


@table.get(_FIRMWARE, "SoftwareInventoryCollection")
def firmware_inventory(bmc: Bmc) -> Document:
    """What firmware is installed."""
    members = links(_FIRMWARE, list(_firmware(bmc)))
    return collection(_FIRMWARE, "SoftwareInventoryCollection", "Firmware Inventory", members)


@table.get(f"{_FIRMWARE}/{{item}}", "SoftwareInventory")
def firmware(bmc: Bmc, item: str) -> Document:
    """One piece of firmware."""
    found = _firmware(bmc).get(item)
    if found is None:
        raise missing(f"{_FIRMWARE}/{item}")
    name, version = found
    path = f"{_FIRMWARE}/{item}"
    return resource(path, "SoftwareInventory", name, Version=version, Updateable=False, Status=OK)


@table.get(f"{ROOT}/Registries", "MessageRegistryFileCollection")
def registries(bmc: Bmc) -> Document:
    """The registries that messages and attributes come from."""
    path = f"{ROOT}/Registries"
    members = links(path, [messages.REGISTRY, bmc.vendor.registry_id])
    return collection(path, "MessageRegistryFileCollection", "Registry Files", members)


@table.get(f"{ROOT}/Registries/{{registry}}", "MessageRegistryFile")
def registry_file(bmc: Bmc, registry: str) -> Document:
    """Where a registry is: DMTF's own at DMTF, the BIOS attributes here."""
    path = f"{ROOT}/Registries/{registry}"
    if registry == messages.REGISTRY:
        published = f"https://redfish.dmtf.org/registries/{messages.REGISTRY}.json"
        location = {"Language": "en", "PublicationUri": published}
    elif registry == bmc.vendor.registry_id:
        location = {"Language": "en", "Uri": bmc.vendor.registry_path}
    else:
        raise missing(path)
    return resource(
        path,
        "MessageRegistryFile",
        f"{registry} Registry File",
        Registry=_registry_name(registry),
        Languages=["en"],
        Location=[location],
    )


@table.get(f"{ROOT}/JsonSchemas", "JsonSchemaFileCollection")
def json_schemas(_bmc: Bmc) -> Document:
    """The schemas that this service follows."""
    path = f"{ROOT}/JsonSchemas"
    members = links(path, [schema_id(schema) for schema in (*VERSIONS, *COLLECTIONS)])
    return collection(path, "JsonSchemaFileCollection", "JSON Schemas", members)


@table.get(f"{ROOT}/JsonSchemas/{{schema}}", "JsonSchemaFile")
def json_schema(_bmc: Bmc, name: str) -> Document:
    """Where DMTF publishes one schema."""
    path = f"{ROOT}/JsonSchemas/{name}"
    schema = name.split(".", 1)[0]
    if schema_id(schema) != name or (schema not in VERSIONS and schema not in COLLECTIONS):
        raise missing(path)
    return resource(
        path,
        "JsonSchemaFile",
        f"{schema} Schema File",
        Schema=odata_type(schema),
        Languages=["en"],
        Location=[{"Language": "en", "PublicationUri": published_json(schema)}],
    )


def _registry_name(registry: str) -> str:
    """The name with the first two parts of the version, as MessageRegistryFile.Registry has it."""
    name, version = registry.split(".", 1)
    numbers = version.removeprefix("v").replace("_", ".").split(".")
    return f"{name}.{numbers[0]}.{numbers[1]}"


def _session_document(session: Session) -> Document:
    return resource(
        f"{_SESSIONS}/{session.id}",
        "Session",
        "User Session",
        UserName=session.user,
        CreatedTime=stamp(session.created_at),
        SessionType="Redfish",
    )


def _find_session(bmc: Bmc, session_id: str) -> Session:
    for session in bmc.sessions.values():
        if session.id == session_id:
            return session
    raise missing(f"{_SESSIONS}/{session_id}")


def _find_job(bmc: Bmc, task_id: str) -> BiosJob:
    for job in bmc.host.bios.jobs:
        if job.id == task_id:
            return job
    raise missing(f"{_TASKS}/{task_id}")
