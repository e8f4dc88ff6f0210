"""How the demonstration goes: everything that it made is given back, however it ended."""

from typing import TYPE_CHECKING

from dflare.cli.client import Api, segment
from dflare.cli.demo_world import Tenant
from dflare.cli.errors import ApiProblem, CliError, Json
from dflare.cli.watch import finish, versions

if TYPE_CHECKING:
    from dflare.cli.demo_story import Story


def settled(api: Api, operation: Json) -> Json:
    """Wait, without showing it, until an operation has ended; returns its last document."""
    known = operation
    for fresh in versions(api, operation["id"], operation, notice=lambda _: None):
        known = fresh or known
    return known


def repair(story: "Story") -> None:
    """Have the server that the run broke looked at anew, now that nothing makes it fail."""
    if story.broken is None:
        return
    operator, name = story.world.operator, str(story.broken["name"])
    if operator.get(f"/nodes/{segment(name)}")["state"] != "failed":
        return
    end = settled(operator, operator.order("POST", f"/nodes/{segment(name)}/enrol"))
    if end["state"] == "succeeded":
        story.stage.say(f"{name} was looked at anew (`dflare node enrol`) and is sound.\n")
        story.broken = None
    else:
        story.stage.say(f"{name} could not be repaired: {end['reason']}", "yellow")


def tidy(story: "Story") -> None:
    """Repair the server that the run broke, and remove its tenants; what cannot be is said."""
    stage, world = story.stage, story.world
    repair(story)
    for tenant in list(world.tenants):
        name = tenant.name
        try:
            world.remove_tenant(tenant)
        except ApiProblem as problem:
            stage.say(f"{name} is left: {problem.detail}", "yellow")
        else:
            stage.say(f"{name} is removed; its usage stays in the ledger.", "dim")


def remove_volumes(tenant: Tenant) -> None:
    """Release every volume of a tenant, and wait until nothing of its content is left.

    Raises:
        CliError: one is left.
    """
    for volume in tenant.api.items(tenant.path("volumes")):
        if volume["state"] != "deleted":
            # One that is being made is done first: a volume does one thing at a time.
            settled(tenant.api, tenant.api.get(f"/operations/{segment(volume['operation_id'])}"))
            path = tenant.path("volumes", volume["name"])
            finish(settled(tenant.api, tenant.api.order("DELETE", path)))


def leave_early(story: "Story") -> None:
    """Give back what the run has, after an error or Ctrl-C. Ctrl-C again leaves it, and says how
    to release it by hand."""
    stage = story.stage
    if not story.world.tenants and story.fault is None:
        return
    stage.say("\nReleasing what the demonstration ordered; Ctrl-C again to leave it.", "yellow")
    try:
        if story.fault is not None:
            story.world.simulator.clear(story.fault)
        for tenant in story.world.tenants:
            _release_all(tenant)
            remove_volumes(tenant)
        tidy(story)
    except (CliError, KeyboardInterrupt) as error:
        stage.say(f"It was not released: {error or 'interrupted'}.", "red")
        say_how_to_leave(story)


def say_how_to_leave(story: "Story") -> None:
    """The commands that release what is left."""
    stage = story.stage
    stage.say("These are left; as the operator (`dflare login --local`), release them by:")
    for tenant in story.world.tenants:
        for cluster in _clusters(tenant):
            project = f"{tenant.name}/demo"
            stage.say(f"  dflare cluster delete {cluster['name']} --project {project} --yes --wait")
        for volume in tenant.api.items(tenant.path("volumes")):
            stage.say(f"  dflare volume delete {volume['name']} --project {tenant.name}/demo --yes")
        stage.say(f"  dflare user delete ada@{tenant.name} --yes")
        stage.say(f"  dflare project delete {tenant.name}/demo --yes")
        stage.say(f"  dflare organization delete {tenant.name} --yes")
    if story.broken is not None:
        stage.say(f"  dflare node enrol {story.broken['name']}")


def _clusters(tenant: Tenant) -> list[Json]:
    found = tenant.api.items(tenant.path("clusters"))
    return [cluster for cluster in found if cluster["state"] != "deleted"]


def _release_all(tenant: Tenant) -> None:
    for cluster in _clusters(tenant):
        operation = tenant.api.get(f"/operations/{segment(cluster['operation_id'])}")
        if cluster["state"] in ("pending", "creating"):
            try:
                operation = tenant.api.order(
                    "POST", f"/operations/{segment(operation['id'])}/cancel"
                )
            except ApiProblem as problem:
                # It was handed over this moment: then it is released below.
                if problem.status != 409:
                    raise
        settled(tenant.api, operation)
        now = tenant.api.get(tenant.path("clusters", cluster["name"]))
        if now["state"] not in ("deleting", "deleted"):
            path = tenant.path("clusters", cluster["name"])
            settled(tenant.api, tenant.api.order("DELETE", path))
