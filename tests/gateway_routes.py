"""What each kind of caller is answered by every route of the gateway, on things of the home tenant
of ``tenanted_gateway``."""

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Any

from auth_routes import ADMINS, TENANTS, auth_expectations, fresh
from callers import INSIDE, Expectation, every
from dflare.apps.portal import PAGES
from dflare.kit.plan import OperationState
from dflare.services.baremetal.contract import NodeState
from gateway_images import EMPTY_BLOB, EMPTY_IMAGE, IMAGE_TYPE, new_repository
from tenanted_gateway import NODE_TYPE, SITE, TenantedGateway, site_body

EVERYONE = every(*INSIDE)
IN_PROJECT = every(*TENANTS, "auditor", "operator")
ON_PLATFORM = every("auditor", "operator")
WORKERS = ("member", "project_admin", *ADMINS)
"""Who may order in the home project."""


def denied(*callers: str) -> dict[str, int]:
    """Those who may read the thing but not do this to it."""
    return every(*callers, status=403)


def ordered(**rest: Any) -> Expectation:
    """An order on something of the home project."""
    answers = every(*WORKERS, status=202) | denied("viewer", "auditor")
    return Expectation(answers, **rest)


def operators_alone(status: int, *readers: str, **rest: Any) -> Expectation:
    """What an operator does to something that ``readers`` and auditors may see."""
    return Expectation({"operator": status} | denied("auditor", *readers), **rest)


def gateway_expectations(gateway: TenantedGateway) -> dict[str, Expectation]:
    """Who gets what of every route, on things of the home tenant."""
    return {
        **auth_expectations(gateway.platform.auth, gateway.callers),
        **_baremetal(gateway),
        **_network(gateway),
        **_clusters(gateway),
        **_jobs(gateway),
        **_keys(gateway),
        **_volumes(gateway),
        **_registry(gateway),
        **_images(gateway),
        **_metrics(gateway),
        **_orchestrator(gateway),
        **_metering(gateway),
        **_gateway_itself(),
    }


def _baremetal(gateway: TenantedGateway) -> dict[str, Expectation]:
    kept, taken = ({"node": node} for node in list(gateway.home.nodes)[:2])
    reason = {"reason": "a test"}

    async def spare() -> dict[str, str]:
        return {"node": await gateway.spare_node(NodeState.AVAILABLE)}

    async def quarantined() -> dict[str, str]:
        return {"node": await gateway.spare_node(NodeState.QUARANTINE)}

    return {
        "PUT /v1/sites/{name}": Expectation(
            {"operator": 200}, 403, path={"name": SITE}, body=site_body(gateway.document)
        ),
        "GET /v1/sites": Expectation(EVERYONE),
        "GET /v1/sites/{site}": Expectation(ON_PLATFORM, path={"site": SITE}),
        "GET /v1/images": Expectation(EVERYONE),
        "GET /v1/node-types": Expectation(EVERYONE),
        "GET /v1/nodes": Expectation(EVERYONE, query={"limit": "500"}),
        "GET /v1/nodes/{node}": Expectation(IN_PROJECT, path=kept),
        "POST /v1/nodes/{node}/cordon": operators_alone(200, *TENANTS, path=kept, body=reason),
        "POST /v1/nodes/{node}/uncordon": operators_alone(200, *TENANTS, path=kept),
        "POST /v1/nodes/{node}/quarantine": operators_alone(200, *TENANTS, path=taken, body=reason),
        "POST /v1/nodes/{node}/reboot": ordered(path=kept),
        "POST /v1/nodes/{node}/rescue": ordered(path=kept),
        "POST /v1/nodes/{node}/unrescue": ordered(path=kept),
        "POST /v1/nodes/{node}/reimage": ordered(path=kept),
        "POST /v1/nodes/{node}/enrol": operators_alone(202, path=spare),
        "POST /v1/nodes/{node}/release-quarantine": operators_alone(202, path=quarantined),
    }


def _network(gateway: TenantedGateway) -> dict[str, Expectation]:
    project, site = {"project": gateway.home.project.id}, {"site": SITE}
    return {
        "GET /v1/networks": Expectation(EVERYONE),
        "GET /v1/networks/{network}": Expectation(
            IN_PROJECT, path={"network": gateway.home.network}
        ),
        "GET /v1/projects/{project}/networks": Expectation(IN_PROJECT, path=project),
        "GET /v1/sites/{site}/devices": Expectation(ON_PLATFORM, path=site),
        "GET /v1/sites/{site}/pools": Expectation(ON_PLATFORM, path=site),
        "GET /v1/sites/{site}/freeze": Expectation(ON_PLATFORM, path=site),
        "POST /v1/sites/{site}/freeze": operators_alone(200, path=site, body={"reason": "a test"}),
        "POST /v1/sites/{site}/unfreeze": operators_alone(200, path=site),
    }


def _clusters(gateway: TenantedGateway) -> dict[str, Expectation]:
    project = {"project": gateway.home.project.id}

    async def released() -> dict[str, str]:
        return {**project, "cluster": await gateway.new_cluster()}

    def order() -> dict[str, Any]:
        return {"name": fresh("c"), "pools": [{"node_type": NODE_TYPE, "count": 1}]}

    async def living() -> dict[str, str]:
        cluster, node = await gateway.living_cluster()
        return {**project, "cluster": cluster, "node": node, "pool": "default"}

    one = {**project, "cluster": gateway.home.cluster}
    clusters = "/v1/projects/{project}/clusters"
    changed = every(*WORKERS) | denied("viewer", "auditor")
    return {
        "GET /v1/clusters": Expectation(EVERYONE),
        f"PATCH {clusters}/{{cluster}}": Expectation(
            changed, path=living, body={"protected": False}
        ),
        f"PATCH {clusters}/{{cluster}}/pools/{{pool}}": ordered(path=living, body={"count": 1}),
        f"POST {clusters}/{{cluster}}/nodes/{{node}}/replace": ordered(path=living),
        f"POST {clusters}/{{cluster}}/nodes/{{node}}/drain": Expectation(
            changed, path=living, body={"reason": "a test"}
        ),
        f"POST {clusters}/{{cluster}}/nodes/{{node}}/undrain": Expectation(changed, path=living),
        "GET /v1/projects/{project}/clusters": Expectation(IN_PROJECT, path=project),
        "POST /v1/projects/{project}/clusters": ordered(path=project, body=order),
        "GET /v1/projects/{project}/clusters/{cluster}": Expectation(IN_PROJECT, path=one),
        "DELETE /v1/projects/{project}/clusters/{cluster}": ordered(path=released),
    }


def _jobs(gateway: TenantedGateway) -> dict[str, Expectation]:
    project = {"project": gateway.home.project.id}
    jobs = "/v1/projects/{project}/clusters/{cluster}/jobs"

    async def scheduled() -> dict[str, str]:
        cluster = await gateway.slurm_cluster()
        return {**project, "cluster": cluster}

    async def submitted() -> dict[str, str]:
        cluster = await scheduled()
        path = jobs.format(**cluster)
        answer = await gateway.ask("member", "POST", path, json={"script": "#!/bin/sh\n"})
        return {**cluster, "job": answer.json()["id"]}

    return {
        f"POST {jobs}": ordered(path=scheduled, body={"script": "#!/bin/sh\n"}),
        f"GET {jobs}": Expectation(IN_PROJECT, path=submitted),
        f"GET {jobs}/{{job}}": Expectation(IN_PROJECT, path=submitted),
        f"GET {jobs}/{{job}}/output": Expectation(IN_PROJECT, path=submitted),
    }


def _keys(gateway: TenantedGateway) -> dict[str, Expectation]:
    home = gateway.home
    project = {"project": home.project.id}
    keys = f"/v1/projects/{home.project.id}/ssh-keys"
    texts = f"/v1/projects/{home.project.id}/user-data"

    def key() -> dict[str, str]:
        public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "C" * 43
        return {"name": fresh("k"), "public_key": public_key}

    def user_data() -> dict[str, str]:
        return {"name": fresh("d"), "text": "#cloud-config"}

    async def new_key() -> dict[str, str]:
        made = await gateway.ask("member", "POST", keys, json=key())
        return {**project, "ssh_key": made.json()["id"]}

    async def new_user_data() -> dict[str, str]:
        made = await gateway.ask("member", "POST", texts, json=user_data())
        return {**project, "user_data": made.json()["id"]}

    changed = every(*WORKERS, status=201)
    removed = every(*WORKERS, status=204)
    one_key = {**project, "ssh_key": home.ssh_key}
    one_text = {**project, "user_data": home.user_data}
    return {
        "GET /v1/projects/{project}/ssh-keys": Expectation(IN_PROJECT, path=project),
        "POST /v1/projects/{project}/ssh-keys": Expectation(
            changed | denied("viewer", "auditor"), path=project, body=key
        ),
        "GET /v1/projects/{project}/ssh-keys/{ssh_key}": Expectation(IN_PROJECT, path=one_key),
        "DELETE /v1/projects/{project}/ssh-keys/{ssh_key}": Expectation(
            removed | denied("viewer", "auditor"), path=new_key
        ),
        # Viewers read no user data, which may hold secrets: to them there is none.
        "GET /v1/projects/{project}/user-data": Expectation(IN_PROJECT, path=project),
        "POST /v1/projects/{project}/user-data": Expectation(
            changed | denied("auditor"), path=project, body=user_data
        ),
        "GET /v1/projects/{project}/user-data/{user_data}": Expectation(
            every(*WORKERS, "auditor"), path=one_text
        ),
        "DELETE /v1/projects/{project}/user-data/{user_data}": Expectation(
            removed | denied("auditor"), path=new_user_data
        ),
    }


def _volumes(gateway: TenantedGateway) -> dict[str, Expectation]:
    project = {"project": gateway.home.project.id}

    async def fresh_one() -> dict[str, str]:
        return {**project, "volume": await gateway.new_volume()}

    async def access() -> dict[str, str]:
        return {**await fresh_one(), "cluster": gateway.home.cluster}

    async def snapshot() -> dict[str, str]:
        volume = await gateway.new_volume()
        return {**project, "volume": volume, "snapshot": await gateway.new_snapshot(volume)}

    def order() -> dict[str, Any]:
        return {"name": fresh("v"), "size_gib": 1}

    one = {**project, "volume": gateway.home.volume}
    changed = every(*WORKERS) | denied("viewer", "auditor")
    return {
        "GET /v1/volumes": Expectation(EVERYONE),
        "GET /v1/projects/{project}/volumes": Expectation(IN_PROJECT, path=project),
        "POST /v1/projects/{project}/volumes": ordered(path=project, body=order),
        "GET /v1/projects/{project}/volumes/{volume}": Expectation(IN_PROJECT, path=one),
        "PATCH /v1/projects/{project}/volumes/{volume}": ordered(
            path=fresh_one, body={"size_gib": 1}
        ),
        "DELETE /v1/projects/{project}/volumes/{volume}": ordered(path=fresh_one),
        "PUT /v1/projects/{project}/volumes/{volume}/access/{cluster}": Expectation(
            changed, path=access, body={"mode": "ro"}
        ),
        "DELETE /v1/projects/{project}/volumes/{volume}/access/{cluster}": Expectation(
            changed, path=access
        ),
        "GET /v1/projects/{project}/volumes/{volume}/snapshots": Expectation(IN_PROJECT, path=one),
        "PUT /v1/projects/{project}/volumes/{volume}/snapshots/{snapshot}": Expectation(
            changed, path=snapshot
        ),
        "DELETE /v1/projects/{project}/volumes/{volume}/snapshots/{snapshot}": Expectation(
            changed, path=snapshot
        ),
    }


def _metrics(gateway: TenantedGateway) -> dict[str, Expectation]:
    """No store of series runs here: whoever may ask is told that, and nobody else."""
    project = {"project": gateway.home.project.id}
    absent = every(*TENANTS, "auditor", "operator", status=503)
    absent_all = every("auditor", "operator", status=503)
    asked = {
        "query": {"query": "up"},
        "query_range": {"query": "up", "start": "1", "end": "2", "step": "1"},
        "series": {"match[]": "up"},
        "labels": {},
    }
    found: dict[str, Expectation] = {}
    for question, query in asked.items():
        for method in ("GET", "POST"):
            found[f"{method} /v1/projects/{{project}}/metrics/api/v1/{question}"] = Expectation(
                absent, path=project, query=query
            )
            found[f"{method} /v1/metrics/api/v1/{question}"] = Expectation(absent_all, query=query)
    name = {"name": "node"}
    values = "metrics/api/v1/label/{name}/values"
    return {
        **found,
        f"GET /v1/projects/{{project}}/{values}": Expectation(absent, path={**project, **name}),
        f"GET /v1/{values}": Expectation(absent_all, path=name),
        "GET /v1/alerts": Expectation(EVERYONE),
        "GET /v1/projects/{project}/alerts": Expectation(IN_PROJECT, path=project),
    }


def _registry(gateway: TenantedGateway) -> dict[str, Expectation]:
    project = {"project": gateway.home.project.id}
    repositories = "/v1/projects/{project}/repositories"

    async def pushed() -> dict[str, str]:
        path = await new_repository(gateway)
        return {**project, "repository": path.rpartition("/")[2], "tag": "v1"}

    removed = every(*WORKERS, status=204) | denied("viewer", "auditor")
    return {
        "GET /v1/repositories": Expectation(EVERYONE),
        "GET /v1/projects/{project}/registry": Expectation(IN_PROJECT, path=project),
        f"GET {repositories}": Expectation(IN_PROJECT, path=project),
        f"GET {repositories}/{{repository}}": Expectation(IN_PROJECT, path=pushed),
        f"DELETE {repositories}/{{repository}}": Expectation(removed, path=pushed),
        f"GET {repositories}/{{repository}}/tags": Expectation(IN_PROJECT, path=pushed),
        f"DELETE {repositories}/{{repository}}/tags/{{tag}}": Expectation(removed, path=pushed),
    }


def _images(gateway: TenantedGateway) -> dict[str, Expectation]:
    """What clients of images ask, in a repository with an image without bytes."""
    empty = EMPTY_BLOB
    blobs, uploads = "/v2/{name:path}/blobs/{digest}", "/v2/{name:path}/blobs/uploads/"

    async def name() -> dict[str, str]:
        return {"name": await new_repository(gateway)}

    async def tag() -> dict[str, str]:
        return {**await name(), "reference": "v1"}

    async def blob() -> dict[str, str]:
        return {**await name(), "digest": empty}

    async def lonely() -> dict[str, str]:
        found = await new_repository(gateway, tagged=False)
        return {"name": found, "digest": empty}

    async def upload() -> dict[str, str]:
        found = await name()
        begun = await gateway.ask("member", "POST", f"/v2/{found['name']}/blobs/uploads/")
        return {**found, "upload": begun.headers["location"].rpartition("/")[2]}

    def pushers(status: int) -> dict[str, int]:
        return every(*WORKERS, status=status) | denied("viewer", "auditor")

    return {
        "GET /v2/": Expectation(EVERYONE),
        "GET /v2/token": Expectation(EVERYONE),
        f"POST {uploads}": Expectation(pushers(202), path=name),
        f"GET {uploads}{{upload}}": Expectation(pushers(204), path=upload),
        f"PATCH {uploads}{{upload}}": Expectation(pushers(202), path=upload),
        f"PUT {uploads}{{upload}}": Expectation(pushers(201), path=upload, query={"digest": empty}),
        f"DELETE {uploads}{{upload}}": Expectation(pushers(204), path=upload),
        f"GET {blobs}": Expectation(IN_PROJECT, path=blob),
        f"DELETE {blobs}": Expectation(pushers(202), path=lonely),
        "GET /v2/{name:path}/manifests/{reference}": Expectation(IN_PROJECT, path=tag),
        "PUT /v2/{name:path}/manifests/{reference}": Expectation(
            pushers(201), path=tag, body=EMPTY_IMAGE, headers={"Content-Type": IMAGE_TYPE}
        ),
        "DELETE /v2/{name:path}/manifests/{reference}": Expectation(pushers(202), path=tag),
        "GET /v2/{name:path}/tags/list": Expectation(IN_PROJECT, path=name),
        "GET /v2/{name:path}/referrers/{digest}": Expectation(IN_PROJECT, path=blob),
    }


def _orchestrator(gateway: TenantedGateway) -> dict[str, Expectation]:
    def in_state(state: OperationState) -> Any:
        async def path() -> dict[str, str]:
            return {"operation": await gateway.new_operation(state)}

        return path

    project = {"project": gateway.home.project.id}
    reservations = f"/v1/projects/{gateway.home.project.id}/reservations"

    hours = itertools.count(1)

    def brief() -> dict[str, Any]:
        # Each has an hour of its own, so that all can have the one leaf that is free.
        starts_at = gateway.platform.process.clock.now() + timedelta(hours=next(hours))
        return {
            "name": fresh("r"),
            "node_type": NODE_TYPE,
            "blocks": 1,
            "level": "leaf",
            "starts_at": starts_at.isoformat(),
            "ends_at": (starts_at + timedelta(minutes=30)).isoformat(),
        }

    async def reservation() -> dict[str, str]:
        made = await gateway.ask("operator", "POST", reservations, json=brief())
        return {**project, "reservation": made.json()["id"]}

    one = {"operation": gateway.home.operation}
    return {
        "GET /v1/projects/{project}/reservations": Expectation(IN_PROJECT, path=project),
        "POST /v1/projects/{project}/reservations": operators_alone(
            201, *TENANTS, path=project, body=brief
        ),
        "GET /v1/projects/{project}/reservations/{reservation}": Expectation(
            IN_PROJECT, path=reservation
        ),
        "DELETE /v1/projects/{project}/reservations/{reservation}": operators_alone(
            204, *TENANTS, path=reservation
        ),
        "GET /v1/operations": Expectation(EVERYONE, query={"limit": "500"}),
        "GET /v1/operations/{operation}": Expectation(IN_PROJECT, path=one),
        "GET /v1/operations/{operation}/trace": Expectation(IN_PROJECT, path=one),
        "POST /v1/operations/{operation}/cancel": ordered(path=in_state(OperationState.PENDING)),
        "POST /v1/operations/{operation}/retry": ordered(path=in_state(OperationState.FAILED)),
        "POST /v1/operations/{operation}/resume": operators_alone(
            202, *TENANTS, path=in_state(OperationState.NEEDS_OPERATOR)
        ),
        "GET /v1/allocations": Expectation(EVERYONE, query={"limit": "500"}),
    }


def _metering(gateway: TenantedGateway) -> dict[str, Expectation]:
    project = {"project": gateway.home.project.id}
    month = f"{gateway.platform.process.clock.now():%Y-%m}"

    async def audited() -> dict[str, str]:
        asked = await gateway.ask("operator", "POST", "/v1/audits/usage:run")
        return {"audit": asked.json()["id"]}

    return {
        "GET /v1/projects/{project}/quotas": Expectation(IN_PROJECT, path=project),
        "PUT /v1/projects/{project}/quotas/{node_type}": operators_alone(
            200, *TENANTS, path={**project, "node_type": NODE_TYPE}, body={"nodes": 100}
        ),
        "GET /v1/projects/{project}/invoices/{month}": Expectation(
            IN_PROJECT, path={**project, "month": month}
        ),
        "GET /v1/projects/{project}/usage": Expectation(
            IN_PROJECT, path=project, query={"month": month}
        ),
        "GET /v1/projects/{project}/usage/volumes": Expectation(
            IN_PROJECT, path=project, query={"month": month}
        ),
        "GET /v1/projects/{project}/usage/registry": Expectation(
            IN_PROJECT, path=project, query={"month": month}
        ),
        "GET /v1/projects/{project}/usage/jobs": Expectation(
            IN_PROJECT, path=project, query={"month": month}
        ),
        "GET /v1/audits/usage": Expectation(ON_PLATFORM),
        "POST /v1/audits/usage:run": operators_alone(202),
        "GET /v1/audits/usage/{audit}": Expectation(ON_PLATFORM, path=audited),
        "GET /v1/audits/usage/{audit}/findings": Expectation(ON_PLATFORM, path=audited),
    }


def _gateway_itself() -> dict[str, Expectation]:
    found = Expectation({}, 200, public=True)
    return {
        "GET /v1/events": Expectation(EVERYONE, query={"limit": "500"}),
        "WEBSOCKET /v1/events": Expectation({}),
        "GET /": found,
        **{f"GET /{name}": found for name in PAGES},
        **{f"GET /{name}/{{rest:path}}": replace(found, path={"rest": "x"}) for name in PAGES},
        "GET /assets/{name}": Expectation({}, public=True, path={"name": "none.js"}),
        "GET /healthz": found,
        "GET /metrics": Expectation(ON_PLATFORM),
        "GET /v1/openapi.json": found,
        "GET /v1/docs": found,
        "GET /docs/oauth2-redirect": found,
    }
