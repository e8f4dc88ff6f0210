"""The REST API of UFM Enterprise, as far as partitions need it.

Source: NVIDIA UFM Enterprise REST API Guide 6.22 ("PKey GUIDs Rest API", "Jobs REST API", "Ports
REST API", "Systems REST API"); what a list without arguments and an unknown key answer comes from
public clients (NVIDIA's infra controller, ib-kubernetes). HTTP Basic over TLS, prefix ``/ufmRest``.
PKeys are ``"0x12"``, 15 bits; GUIDs 16 hexadecimal digits, with or without ``0x``.

``GET /app/ufm_version``
    200 ``{"ufm_release_version": "6.22.1-3"}``.
``GET /app/smconf``, ``GET /resources/systems``, ``GET /resources/ports?sys_type=Computer``
    200: the subnet manager's keys; a list of hosts; a list of the hosts' ports.
``GET /resources/pkeys``
    200, a list of keys: ``["0x7fff", "0x12"]``.
``GET /resources/pkeys?guids_data=true``
    200, partitions by key.
``GET /resources/pkeys/0x12?guids_data=true``
    200, one partition; ``{}`` for a key that is not there.
``POST /resources/pkeys/add``
    ``{"pkey", "partition_name", "index0", "ip_over_ib", "mtu_limit", "service_level",
    "rate_limit"}``: an empty partition. 200; 400 ``already exist``.
``POST /resources/pkeys``, ``PUT /resources/pkeys``
    ``{"pkey", "guids", "index0", "ip_over_ib", "membership" or "memberships"}``: add these ports;
    have these ports and no others. 200.
``DELETE /resources/pkeys/0x12/guids/G1,G2``, ``POST /actions/remove_guids_from_pkey``
    The second with ``{"pkey", "guids"}``. 200; 404 for a key that is not there.
``DELETE /resources/pkeys/0x12``
    200; 404 for a key that is not there.
``PUT /resources/pkeys/qos_conf``
    ``{"pkey", "mtu_limit", "service_level", "rate_limit"}``. 200.
``POST /resources/pkeys/hosts``, ``DELETE /resources/pkeys/0x12/hosts/a,b``
    The first with ``{"hosts_names": "a,b", "pkey", "membership", "index0"}``. 202.
``GET /jobs``, ``GET /jobs?status=Running&operation=…``, ``GET /jobs/1``, ``GET /jobs/1,2``
    200, a list; for a single id one job ``{"ID", "Status", "Progress", "Summary", …}``. ``Status``
    is ``Running``, ``Completed``, ``Completed With Errors`` or ``Aborted``.
``DELETE /jobs/1``, ``POST /jobs/abortall``
    200: jobs that still run are aborted.

A partition is ``{"partition": name, "ip_over_ib": true, "guids": [{"guid", "membership",
"index0"}]}``; with ``qos_conf=true`` (one key, or a list without ``guids_data``) also
``"qos_conf"``. The default partition 0x7fff also says ``"membership"``: how every port is in it
that is not among its ``guids``. ``full`` there means that **every port reaches every port**.

**Every write is asynchronous**: 200 says that it was accepted, and what GET shows changes when its
job completes. The guide gives a job (202 and ``Location: /ufmRest/jobs/ID``) to the ``hosts`` calls
only. For the others the simulator sends the same ``Location`` with its 200, which a real UFM does
not: use it where it is there, and rely on reading back. A removal that finds nothing yet answers
404 although a job that adds is still on its way.
"""

from collections.abc import Iterable, Mapping, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from dflare.sim.config import Credentials
from dflare.sim.fabric.forms import (
    Refused,
    body_of,
    boolean,
    guid_of,
    guids_of,
    is_true,
    members_of,
    pkey_of,
    ports_of,
    qos_of,
)
from dflare.sim.fabric.inventory import Inventory
from dflare.sim.fabric.partitions import DEFAULT_PKEY, Change, Job, Partition, Partitions
from dflare.sim.fabric.tree import Json, Tree
from dflare.sim.fabric.wire import Answer, BadBody, Call, read_call
from dflare.sim.faults import FaultPlan
from dflare.sim.server import drop_connection

VERSION = "6.22.1-3"
_SM_CONFIG: Json = {
    "subnet_prefix": "0xfe80000000000000",
    "m_key": "0x0000000000000000",
    "sm_key": "0x0000000000000001",
    "sa_key": "0x0000000000000001",
    "m_key_per_port": False,
}


def ufm_app(
    partitions: Partitions, known: Inventory, credentials: Credentials, faults: FaultPlan
) -> ASGIApp:
    """The manager's app."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if faults.hit("ufm_unreachable", partitions.manager) is not None:
            await drop_connection(scope, receive)
            return
        try:
            call = await read_call(scope, receive)
            answer = _answer(partitions, known, call, credentials)
        except BadBody as bad:
            answer = Answer(400, {"error": str(bad)})
        except Refused as refused:
            answer = Answer(refused.status, {"error": str(refused)})
        await answer.send(send)

    return app


def _answer(
    partitions: Partitions, known: Inventory, call: Call, credentials: Credentials
) -> Answer:
    if call.path[:1] != ("ufmRest",):
        raise Refused("Not Found", 404)
    if not call.authorized(credentials):
        challenge = ((b"www-authenticate", b'Basic realm="UFM"'),)
        return Answer(401, {"error": "Unauthorized"}, challenge)
    match (call.method, *call.path[1:]):
        case ("GET", "app", "ufm_version"):
            return Answer(200, {"ufm_release_version": VERSION})
        case ("GET", "app", "smconf"):
            return Answer(200, _SM_CONFIG)
        case ("GET", "resources", "systems"):
            return Answer(200, raw=known.systems)
        case ("GET", "resources", "ports"):
            hosts = call.query.get("sys_type", "Computer") == "Computer"
            return Answer(200, raw=known.ports if hosts else b"[]")
        case (_, "resources", "pkeys", *rest):
            return _on_pkeys(partitions, known, call, rest)
        case ("POST", "actions", "remove_guids_from_pkey"):
            body = body_of(call)
            return _remove(partitions, pkey_of(body.get("pkey")), guids_of(body.get("guids")))
        case (_, "jobs", *rest):
            return _on_jobs(partitions, call, rest)
        case _:
            raise Refused("Not Found", 404)


def _on_pkeys(partitions: Partitions, known: Inventory, call: Call, rest: Sequence[str]) -> Answer:
    match (call.method, *rest):
        case ("GET",):
            return _list(partitions, call)
        case ("GET", text):
            found = partitions.by_pkey.get(pkey_of(text))
            return Answer(200, {} if found is None else _shown(partitions, found, call.query))
        case ("POST", "add"):
            return _add_empty(partitions, body_of(call))
        case ("POST",):
            return _put_in(partitions, body_of(call), exact=False)
        case ("PUT",):
            return _put_in(partitions, body_of(call), exact=True)
        case ("PUT", "qos_conf"):
            return _set_qos(partitions, body_of(call))
        case ("POST", "hosts"):
            return _add_hosts(partitions, known, body_of(call))
        case ("DELETE", text):
            return _delete(partitions, pkey_of(text))
        case ("DELETE", text, "guids", guids):
            return _remove(partitions, pkey_of(text), [guid_of(g) for g in guids.split(",") if g])
        case ("DELETE", text, "hosts", hosts):
            guids = ports_of(known, hosts)
            return _remove(partitions, pkey_of(text), guids, accepted=202)
        case _:
            raise Refused("Not Found", 404)


def _list(partitions: Partitions, call: Call) -> Answer:
    ordered = [partitions.by_pkey[pkey] for pkey in sorted(partitions.by_pkey, reverse=True)]
    if not is_true(call.query, "guids_data") and not is_true(call.query, "qos_conf"):
        return Answer(200, [hex(partition.pkey) for partition in ordered])
    query = dict(call.query)
    if is_true(query, "guids_data"):
        query.pop("qos_conf", None)
    return Answer(200, {hex(p.pkey): _shown(partitions, p, query) for p in ordered})


def _shown(partitions: Partitions, partition: Partition, query: Mapping[str, str]) -> Json:
    shown: Tree = {"partition": partition.name, "ip_over_ib": partition.ip_over_ib}
    if is_true(query, "guids_data"):
        shown["guids"] = [
            {"guid": guid, "membership": member.membership, "index0": member.index0}
            for guid, member in partition.members.items()
        ]
        if partition.pkey == DEFAULT_PKEY:
            shown["membership"] = partitions.default_membership
    if is_true(query, "qos_conf"):
        qos = partition.qos
        shown["qos_conf"] = {
            "mtu_limit": qos.mtu_limit,
            "service_level": qos.service_level,
            "rate_limit": qos.rate_limit,
        }
    return shown


def _add_empty(partitions: Partitions, body: Tree) -> Answer:
    pkey = pkey_of(body.get("pkey"))
    if pkey in partitions.by_pkey:
        raise Refused(f"partition {pkey:#x} already exist")
    name = body.get("partition_name")
    change = Change(
        pkey,
        create=True,
        name=name if isinstance(name, str) else None,
        ip_over_ib=boolean(body, "ip_over_ib", default=True),
        qos=qos_of(body),
    )
    return _accepted(partitions.submit("PKey add", f"Create PKey {pkey:#x}", change))


def _put_in(partitions: Partitions, body: Tree, *, exact: bool) -> Answer:
    pkey = pkey_of(body.get("pkey"))
    guids = guids_of(body.get("guids"))
    if not guids and not exact:
        raise Refused("guids: an empty list")
    change = Change(
        pkey,
        members=members_of(guids, body),
        exact=exact,
        ip_over_ib=boolean(body, "ip_over_ib", default=True),
    )
    what = "Set" if exact else "Add"
    return _accepted(
        partitions.submit("PKey GUIDs", f"{what} {len(guids)} GUIDs of PKey {pkey:#x}", change)
    )


def _add_hosts(partitions: Partitions, known: Inventory, body: Tree) -> Answer:
    pkey = pkey_of(body.get("pkey"))
    names = body.get("hosts_names")
    if not isinstance(names, str):
        raise Refused("hosts_names: a string of names with commas between them is needed")
    change = Change(
        pkey,
        members=members_of(ports_of(known, names), body),
        ip_over_ib=boolean(body, "ip_over_ib", default=True),
    )
    job = partitions.submit("PKey hosts", f"Add hosts {names} to PKey {pkey:#x}", change)
    return _accepted(job, 202)


def _remove(partitions: Partitions, pkey: int, guids: Sequence[str], accepted: int = 200) -> Answer:
    if pkey not in partitions.by_pkey:
        raise Refused(f"PKey {pkey:#x} does not exist", 404)
    description = f"Remove {len(guids)} GUIDs from PKey {pkey:#x}"
    change = Change(pkey, removed=frozenset(guids))
    return _accepted(partitions.submit("PKey GUIDs", description, change), accepted)


def _delete(partitions: Partitions, pkey: int) -> Answer:
    if pkey == DEFAULT_PKEY:
        raise Refused("the default partition cannot be deleted")
    if pkey not in partitions.by_pkey:
        raise Refused(f"PKey {pkey:#x} does not exist", 404)
    change = Change(pkey, delete=True)
    return _accepted(partitions.submit("PKey delete", f"Delete PKey {pkey:#x}", change))


def _set_qos(partitions: Partitions, body: Tree) -> Answer:
    pkey = pkey_of(body.get("pkey"))
    if pkey not in partitions.by_pkey:
        raise Refused(f"PKey {pkey:#x} does not exist", 404)
    change = Change(pkey, qos=qos_of(body))
    return _accepted(partitions.submit("PKey QoS", f"QoS of PKey {pkey:#x}", change))


def _accepted(job: Job, status: int = 200) -> Answer:
    return Answer(status, {}, ((b"location", f"/ufmRest/jobs/{job.id}".encode()),))


def _on_jobs(partitions: Partitions, call: Call, rest: Sequence[str]) -> Answer:
    match (call.method, *rest):
        case ("GET",):
            return Answer(200, [_job(job) for job in _chosen(partitions.jobs.values(), call)])
        case ("GET", ids):
            found = [partitions.jobs[i] for i in ids.split(",") if i in partitions.jobs]
            if "," not in ids and found:
                return Answer(200, _job(found[0]))
            return Answer(200, [_job(job) for job in found])
        case ("POST", "abortall"):
            partitions.abort(partitions.jobs.values())
            return Answer(200, {})
        case ("DELETE", job_id):
            job = partitions.jobs.get(job_id)
            if job is None:
                raise Refused(f"no job {job_id}", 404)
            partitions.abort([job])
            return Answer(200, {})
        case _:
            raise Refused("Not Found", 404)


def _chosen(jobs: Iterable[Job], call: Call) -> list[Job]:
    status, operation = call.query.get("status"), call.query.get("operation")
    return [
        job
        for job in jobs
        if status in {None, str(job.status)} and operation in {None, job.operation}
    ]


def _job(job: Job) -> Json:
    done = job.status != "Running"
    return {
        "ID": job.id,
        "Status": str(job.status),
        "Progress": 100 if done else 0,
        "Description": job.description,
        "Created": job.created.strftime("%Y-%m-%d %H:%M:%S"),
        "LastUpdated": job.updated.strftime("%Y-%m-%d %H:%M:%S"),
        "Summary": job.summary,
        "RelatedObjects": list(job.related),
        "CreatedBy": "admin",
        "Operation": job.operation,
        "Foreground": True,
        "SiteName": None,
    }
