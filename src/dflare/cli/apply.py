"""`dflare apply`: make clusters what a file says."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import ApiProblem, CliError, Json
from dflare.cli.output import (
    Output,
    OutputOption,
    ProjectOption,
    WaitOption,
    YesOption,
    confirm,
    new_console,
    note,
    print_data,
)
from dflare.cli.watch import finish, watch_operation

if TYPE_CHECKING:
    from dflare.cli.apply_plan import ClusterPlan
    from dflare.cli.cluster_spec import ClusterSpec

BUSY = ("pending", "creating", "resizing", "deleting")


class Drain(StrEnum):
    """What is done where jobs run on nodes that leave."""

    WAIT = "wait"
    REFUSE = "refuse"
    NOW = "now"


@dataclass(frozen=True)
class _Step:
    """A document's plan and where its cluster is, or will be, in the API."""

    plan: "ClusterPlan"
    clusters: str
    cluster: str
    etag: str | None


def register(root: typer.Typer) -> None:
    """Add `apply`."""
    root.command()(apply)


def apply(
    file: Annotated[
        Path, typer.Option("--file", "-f", help="Documents of clusters in YAML; - is stdin.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the difference; change nothing.")
    ] = False,
    drain: Annotated[
        Drain, typer.Option(help="What to do where jobs run on nodes that leave.")
    ] = Drain.WAIT,
    yes: YesOption = False,
    wait: WaitOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make clusters what a file says: order those that do not exist, scale those that do.

    Every document is looked at before anything is changed. What the file does not name is left
    alone; releasing a cluster is `dflare cluster delete`.
    """
    from dflare.cli.cluster_spec import read_specs

    specs = read_specs(file)
    with Api.of_environment(project) as api:
        steps = [_step(api, spec) for spec in specs]
        if dry_run:
            _show(api, steps, output)
            return
        _refuse(steps)
        leaving = sum(step.plan.released for step in steps)
        if leaving:
            confirm(f"Release {leaving} nodes and erase their disks?", yes=yes)
        done = [(step, _carry_out(api, step, drain)) for step in steps]
        _follow(api, done, output, wait=wait)


def _step(api: Api, spec: "ClusterSpec") -> _Step:
    from dflare.cli.apply_plan import plan_cluster
    from dflare.cli.cluster_life import seconds_of

    project = segment(str(api.find_project(spec.project)["id"])) if spec.project else api.project()
    clusters = f"/projects/{project}/clusters"
    path = f"{clusters}/{segment(spec.name)}"
    live: Json | None = None
    try:
        live = api.get(path)
    except ApiProblem as problem:
        if problem.status != 404:
            raise
    names = _names(api, f"/projects/{project}") if live else {}
    plan = plan_cluster(spec, live, names, seconds_of(spec.ttl) if spec.ttl else None)
    if live is not None and live["state"] in BUSY and plan.action != "unchanged":
        raise CliError(
            f"cluster {spec.name} is {live['state']}",
            next_step=f"Watch it by `dflare operation watch {live['operation_id']}`, then repeat.",
        )
    found = f"{clusters}/{segment(str(live['id']))}" if live else path
    return _Step(plan, clusters, found, live.get("etag") if live else None)


def _names(api: Api, project: str) -> dict[str, str]:
    """What documents name, by id."""
    lists = ("/sites", *(f"{project}/{kind}" for kind in ("ssh-keys", "user-data", "volumes")))
    return {str(item["id"]): str(item["name"]) for path in lists for item in api.items(path)}


def _refuse(steps: list[_Step]) -> None:
    from dflare.cli.apply_plan import CHANGEABLE

    refused = [f"{step.plan.name}: {text}" for step in steps for text in step.plan.refused]
    if refused:
        raise CliError(
            "nothing was changed, because a cluster that exists cannot become what is described:\n"
            + "\n".join(refused),
            next_step=f"What can be changed: {CHANGEABLE}. Otherwise order another cluster.",
        )


def _carry_out(api: Api, step: _Step, drain: Drain) -> list[Json]:
    """Order what the plan says; returns the operations."""
    plan = step.plan
    if plan.body is not None:
        return [api.order("POST", step.clusters, plan.body)]
    etag = step.etag
    if plan.life:
        etag = api.change("PATCH", step.cluster, dict(plan.life), etag=etag).get("etag")
    operations: list[Json] = []
    for scale in plan.scales:
        if operations:
            # A cluster does one thing at a time.
            finish(watch_operation(api, operations[-1]["id"], operations[-1]))
            etag = None
        path = f"{step.cluster}/pools/{segment(scale.pool_id)}"
        body = {"count": scale.new, "drain": drain.value}
        operations.append(api.order("PATCH", path, body, etag=etag))
    return operations


def _follow(api: Api, done: list[tuple[_Step, list[Json]]], output: Output, *, wait: bool) -> None:
    if output is Output.TABLE:
        for step, operations in done:
            print(f"cluster/{step.plan.name} {step.plan.action}")
            for operation in [] if wait else operations[-1:]:
                note(f"Watch it by `dflare operation watch {operation['id']}`.")
    ended: list[tuple[_Step, list[Json]]] = []
    for step, operations in done:
        ends = [watch_operation(api, one["id"], one) if wait else one for one in operations]
        ended.append((step, ends))
    if output is not Output.TABLE:
        answer = [
            {
                "kind": "Cluster",
                "name": step.plan.name,
                "action": step.plan.action,
                "operations": ends,
            }
            for step, ends in ended
        ]
        print_data(answer, output)
    for _, ends in ended if wait else []:
        for operation in ends:
            finish(operation)


def _show(api: Api, steps: list[_Step], output: Output) -> None:
    if output is not Output.TABLE:
        answer = [
            {
                "kind": "Cluster",
                "name": step.plan.name,
                "action": step.plan.action,
                "refused": list(step.plan.refused),
                "before": step.plan.before,
                "after": step.plan.after,
            }
            for step in steps
        ]
        print_data(answer, output)
        return
    from dflare.cli.apply_plan import plan_lines

    console = new_console()
    for step in steps:
        for line in plan_lines(step.plan):
            console.print(line, soft_wrap=True, highlight=False)
        for text in step.plan.refused:
            console.print(f"! {text}", style="red", markup=False, highlight=False, soft_wrap=True)
        if step.plan.body is not None:
            quote = api.order("POST", step.clusters, step.plan.body, dry_run=True)
            console.print(
                f"# {len(quote['nodes']) or 'no'} nodes now, {quote['price_per_hour']} "
                f"{quote['currency']} an hour; {quote['placement']}",
                style="dim",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    note("Nothing was changed.")
    _refuse(steps)
