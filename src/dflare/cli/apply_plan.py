"""What `dflare apply` would do to one cluster: what differs, what of it can be changed, and how."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dflare.cli.cluster_spec import ClusterSpec
from dflare.cli.errors import Json
from dflare.cli.output import text_cell

if TYPE_CHECKING:
    from rich.text import Text

CHANGEABLE: Final = "the count of a pool, protected, and ttl where the cluster has no end yet"
SITE_DEFAULT: Final = "default"


@dataclass(frozen=True)
class Scale:
    """Another size of a pool."""

    pool: str
    pool_id: str
    old: int
    new: int


@dataclass(frozen=True)
class ClusterPlan:
    """What is to be done. ``body`` is the order of a cluster that does not exist; ``life`` changes
    end and protection; ``refused`` says what cannot be changed; ``before`` and ``after`` are what
    the difference is shown between."""

    name: str
    before: Json
    after: Json
    body: Json | None = None
    scales: tuple[Scale, ...] = ()
    life: Mapping[str, Any] | None = None
    refused: tuple[str, ...] = ()

    @property
    def action(self) -> str:
        """What is done in words, as `dflare apply` says it."""
        if self.body is not None:
            return "created"
        words = [f"pool {one.pool} scaled from {one.old} to {one.new}" for one in self.scales]
        words += ["configured"] if self.life else []
        return ", ".join(words) or "unchanged"

    @property
    def released(self) -> int:
        """How many nodes leave, with what is on their disks."""
        return sum(max(0, one.old - one.new) for one in self.scales)


def order_body(spec: ClusterSpec, ttl_s: int | None) -> Json:
    """The order of a new cluster, as the API takes it; what the document leaves out is left to the
    API."""
    given: Json = {
        "name": spec.name,
        "kind": {"slurm": "slurm", "none": "bare"}.get(spec.scheduler or ""),
        "site": spec.site,
        "image": spec.image,
        "pools": [pool.model_dump() for pool in spec.pools],
        "ssh_keys": spec.ssh_keys,
        "user_data": spec.user_data,
        "volumes": [one.model_dump() for one in spec.volumes] if spec.volumes else None,
        "placement": spec.placement.model_dump(exclude_none=True) if spec.placement else None,
        "wait_for_capacity": spec.wait_for_capacity,
        "ttl_s": ttl_s,
        "protected": spec.protected,
    }
    return {key: value for key, value in given.items() if value is not None}


def plan_cluster(
    spec: ClusterSpec,
    live: Json | None,
    names: Mapping[str, str] | None = None,
    ttl_s: int | None = None,
) -> ClusterPlan:
    """Compare a document with the cluster of that name; ``live`` is None where there is none.

    ``names`` are those of sites, SSH keys, user data and volumes by their ids: a document may name
    them by either.
    """
    wanted = _named(_document(spec), names or {})
    if live is None:
        return ClusterPlan(spec.name, {}, wanted, body=order_body(spec, ttl_s))
    before = _named(_as_document(live), names or {})
    if spec.image in (None, SITE_DEFAULT):
        wanted.pop("image", None)
    if "volumes" not in before:
        wanted.pop("volumes", None)
    for key in ("placement", "wait_for_capacity"):
        # They say how an order is placed; a cluster that exists was placed.
        wanted.pop(key, None)
    if spec.ttl is not None and live.get("expires_at"):
        # Counted from when it was first applied; each later apply would move the end otherwise.
        wanted.pop("ttl")
    after = {**before, **wanted}
    scales, refused = _pools(before["pools"], after["pools"], live)
    refused += [
        f"{key}: {_short(before[key])} cannot become {_short(after[key])}"
        for key in ("scheduler", "site", "image", "ssh_keys", "user_data", "volumes")
        if key in wanted and before.get(key) != after[key]
    ]
    life: Json = {}
    if spec.protected is not None and spec.protected != before["protected"]:
        life["protected"] = spec.protected
    if "ttl" in wanted:
        life["ttl_s"] = ttl_s
    return ClusterPlan(
        spec.name, before, after, scales=tuple(scales), life=life or None, refused=tuple(refused)
    )


def plan_lines(plan: ClusterPlan) -> Iterator["Text"]:
    """The difference as kubectl and git show it."""
    from rich.text import Text

    old, new = _yaml(plan.before), _yaml(plan.after)
    names = f"cluster/{plan.name} as it is", f"cluster/{plan.name} as described"
    if old == new:
        yield Text(f"cluster/{plan.name} unchanged", style="dim")
    for line in difflib.unified_diff(old, new, *names, n=2, lineterm=""):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        yield Text(line, style="bold" if line[:3] in ("+++", "---") else style)


def _pools(before: list[Json], after: list[Json], live: Json) -> tuple[list[Scale], list[str]]:
    old = {pool["name"]: pool for pool in before}
    new = {pool["name"]: pool for pool in after}
    ids = {pool["name"]: str(pool["id"]) for pool in live["pools"]}
    scales: list[Scale] = []
    refused = [f"pool {name} cannot be added" for name in new if name not in old]
    refused += [f"pool {name} cannot be taken away" for name in old if name not in new]
    for name in old.keys() & new.keys():
        if old[name]["node_type"] != new[name]["node_type"]:
            refused.append(
                f"pool {name}: nodes of type {old[name]['node_type']} cannot become "
                f"{new[name]['node_type']}"
            )
        elif old[name]["count"] != new[name]["count"]:
            scales.append(Scale(name, ids[name], old[name]["count"], new[name]["count"]))
    return sorted(scales, key=lambda one: one.pool), refused


def _document(spec: ClusterSpec) -> Json:
    """What a document says, in the order of its keys, without what it leaves out."""
    said = spec.model_dump(exclude={"project", "kind"}, exclude_none=True)
    return {**said, "pools": _sorted_pools(said["pools"])}


def _named(document: Json, names: Mapping[str, str]) -> Json:
    """The same by names; keys are a set, whose order says nothing."""
    named = dict(document)
    for key in ("site", "user_data"):
        if key in named:
            named[key] = names.get(named[key], named[key])
    if "ssh_keys" in named:
        named["ssh_keys"] = sorted(names.get(one, one) for one in named["ssh_keys"])
    if "volumes" in named:
        volumes: list[Json] = named["volumes"]
        named["volumes"] = sorted(
            ({**one, "volume": names.get(one["volume"], one["volume"])} for one in volumes),
            key=lambda one: str(one["mount"]),
        )
    return named


def _as_document(live: Json) -> Json:
    """A cluster of the API as the document that describes it."""
    document: Json = {
        "name": live["name"],
        "scheduler": "slurm" if live["kind"] == "slurm" else "none",
        "site": live["site_id"],
        "image": live["image"],
        "pools": _sorted_pools(
            [{key: pool[key] for key in ("name", "node_type", "count")} for pool in live["pools"]]
        ),
        "ssh_keys": live["ssh_keys"],
        "user_data": live["user_data"],
        "protected": bool(live.get("protected")),
    }
    if "volumes" in live:
        document["volumes"] = live["volumes"]
    return document


def _sorted_pools(pools: list[Json]) -> list[Json]:
    return sorted(pools, key=lambda pool: str(pool["name"]))


def _yaml(document: Json) -> list[str]:
    import yaml

    shown = {key: value for key, value in document.items() if value not in (None, [])}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).splitlines() if shown else []


def _short(value: Any) -> str:
    if value in (None, "", []):
        return "nothing"
    return text_cell(value)
