"""What a new site document would change, for a dry run."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from pydantic import BaseModel, SecretStr

from dflare.site.document import SiteDocument
from dflare.site.problems import KeyPath, path_text


class PartKind(StrEnum):
    """The kinds of part that a document has."""

    SITE = "site"
    CREDENTIAL = "credential"
    POOLS = "pools"
    ETHERNET_SWITCH = "ethernet_switch"
    INFINIBAND = "infiniband"
    SCHEDULER_HOST = "scheduler_host"
    IMAGE = "image"
    NODE_TYPE = "node_type"
    RACK = "rack"
    NODE = "node"


@dataclass(frozen=True)
class FieldChange:
    """One value that differs: its path inside the part, and both values as text.

    A password is shown as asterisks on both sides; None stands for a value that is not there.
    """

    path: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class PartChange:
    """A part that stands in both documents and differs in ``fields``."""

    kind: PartKind
    name: str
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True)
class SiteDiff:
    """Parts (kind, name) that the new document adds and removes, and those that it changes."""

    added: tuple[tuple[PartKind, str], ...]
    changed: tuple[PartChange, ...]
    removed: tuple[tuple[PartKind, str], ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def counts(self) -> dict[PartKind, tuple[int, int, int]]:
        """Added, changed and removed parts of each kind that has any."""
        counted: dict[PartKind, tuple[int, int, int]] = {}
        for kind in PartKind:
            added = sum(k is kind for k, _ in self.added)
            changed = sum(c.kind is kind for c in self.changed)
            removed = sum(k is kind for k, _ in self.removed)
            if added or changed or removed:
                counted[kind] = (added, changed, removed)
        return counted


def diff(old: SiteDocument | None, new: SiteDocument) -> SiteDiff:
    """Compare two documents of a site by the names of their parts; order alone is no change.

    ``old`` is None where the site is new: everything is added.
    """
    before = dict(_parts(old)) if old else {}
    after = dict(_parts(new))
    changed: list[PartChange] = []
    for (kind, name), part in after.items():
        other = before.get((kind, name))
        if other is not None and other != part:
            changed.append(PartChange(kind, name, tuple(_changes(other, part, ()))))
    return SiteDiff(
        added=tuple(key for key in after if key not in before),
        changed=tuple(changed),
        removed=tuple(key for key in before if key not in after),
    )


def _parts(document: SiteDocument) -> Iterator[tuple[tuple[PartKind, str], object]]:
    ethernet = document.fabrics.ethernet
    head: dict[str, object] = {
        "name": document.name,
        "region": document.region,
        "description": document.description,
        "fabrics": {"ethernet": {"credentials_ref": ethernet.credentials_ref}},
    }
    yield (PartKind.SITE, document.name), head
    for ref, credential in document.credentials.items():
        yield (PartKind.CREDENTIAL, ref), credential
    yield (PartKind.POOLS, "pools"), document.pools
    for switch in ethernet.switches:
        yield (PartKind.ETHERNET_SWITCH, switch.name), switch
    if document.fabrics.infiniband:
        yield (PartKind.INFINIBAND, document.fabrics.infiniband.name), document.fabrics.infiniband
    for host in document.scheduler_hosts:
        yield (PartKind.SCHEDULER_HOST, host.name), host
    for image in document.images:
        yield (PartKind.IMAGE, image.name), image
    for kind in document.node_types:
        yield (PartKind.NODE_TYPE, kind.name), kind
    for rack in document.racks:
        yield (PartKind.RACK, rack.name), rack
    for node in document.nodes:
        yield (PartKind.NODE, node.name), node


def _changes(old: object, new: object, path: KeyPath) -> Iterator[FieldChange]:
    if old == new:
        return
    if isinstance(old, BaseModel) and isinstance(new, BaseModel):
        for name in type(new).model_fields:
            yield from _changes(getattr(old, name), getattr(new, name), (*path, name))
    elif isinstance(old, dict) and isinstance(new, dict):
        before, after = cast("dict[str, object]", old), cast("dict[str, object]", new)
        for name in dict.fromkeys([*before, *after]):
            yield from _changes(before.get(name), after.get(name), (*path, name))
    elif isinstance(old, tuple) and isinstance(new, tuple):
        left, right = cast("tuple[object, ...]", old), cast("tuple[object, ...]", new)
        for i in range(max(len(left), len(right))):
            one = left[i] if i < len(left) else None
            other = right[i] if i < len(right) else None
            yield from _changes(one, other, (*path, i))
    else:
        texts = _text(cast("object", old)), _text(new)  # Neither narrowed above.
        yield FieldChange(path_text(path), *texts)


def _text(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, SecretStr):
        return "**********"
    if isinstance(value, BaseModel):
        parts = ((name, _text(getattr(value, name))) for name in type(value).model_fields)
        return ", ".join(f"{name} {text}" for name, text in parts if text is not None)
    return str(value)
