"""Documents of clusters, as `dflare apply` reads them: every problem at once, with line and key."""

import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dflare.cli.errors import CliError
from dflare.site.problems import KeyPath, SiteErrors, SiteProblem, did_you_mean, path_text
from dflare.site.tree import Tree, parse_tree, syntax_problem

BYTES_AT_MOST: Final = 1 << 20
STDIN: Final = "-"
_MARKER = re.compile(r"^---(?=\s|$)")
_NAME: Final = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
_DURATION: Final = r"^([1-9][0-9]*[dhms])+$"
_MOUNT: Final = r"^/\S+$"
_WANTED: Final = {
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "a group of keys",
}
_PATTERN_HINTS: Final = {
    _NAME: "use 1 to 63 lower-case letters, digits and dashes, and begin with a letter",
    _DURATION: "write it as 8h, 90m, 2d or 1d12h",
    _MOUNT: "write an absolute path, as /mnt/data",
}

Name = Annotated[str, Field(pattern=_NAME)]
Reference = Annotated[str, Field(min_length=1, max_length=200)]


class SpecModel(BaseModel):
    """What every part of a document follows: exact types and known keys only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PoolSpec(SpecModel):
    """A node pool."""

    name: Name = Field(default="default", description="Name of the pool, unique in the cluster.")
    node_type: Reference = Field(description="Type of its nodes; see `dflare node types`.")
    count: int = Field(ge=1, le=8192, description="How many nodes.")


class VolumeSpec(SpecModel):
    """A volume that every node sees."""

    volume: Reference = Field(description="Name or id of the volume.")
    mount: str = Field(pattern=_MOUNT, description="Absolute path where nodes see it.")
    read_only: bool = Field(default=False, description="Whether nodes may only read it.")


class PlacementSpec(SpecModel):
    """Where the nodes shall lie when they are ordered."""

    shape: Literal["pack", "spread"] = Field(default="pack", description="pack or spread.")
    same: Literal["nvlink-domain", "leaf", "rail-block", "block"] | None = Field(
        default=None, description="A group that must hold all of them."
    )
    exclude: list[Reference] | None = Field(default=None, description="Nodes that it must not get.")


class ClusterSpec(SpecModel):
    """A cluster as somebody wants it. A key that is left out says nothing: where the cluster exists
    what it stands for is left alone."""

    kind: Literal["Cluster"] = Field(description="Cluster.")
    name: Name = Field(description="Name of the cluster, unique in its project.")
    project: Reference | None = Field(
        default=None, description="Project as ORGANIZATION/NAME or id; the chosen one unless told."
    )
    scheduler: Literal["none", "slurm"] | None = Field(
        default=None, description="slurm for a Slurm cluster of its own; bare servers unless told."
    )
    site: Reference | None = Field(default=None, description="Site; not needed where one is.")
    image: Reference | None = Field(default=None, description="Image that the nodes boot.")
    pools: list[PoolSpec] = Field(min_length=1, max_length=32, description="Pools of nodes.")
    ssh_keys: list[Reference] | None = Field(default=None, description="SSH keys by name.")
    user_data: Reference | None = Field(default=None, description="User data by name.")
    volumes: list[VolumeSpec] | None = Field(default=None, description="Volumes to mount.")
    placement: PlacementSpec | None = Field(
        default=None, description="Wishes for where its nodes lie; heeded when it is ordered."
    )
    wait_for_capacity: bool | None = Field(
        default=None, description="Whether the order waits in turn where too few nodes are free."
    )
    ttl: str | None = Field(
        default=None,
        pattern=_DURATION,
        description="After this time it is released, as 8h; counted from when it is first applied.",
    )
    protected: bool | None = Field(default=None, description="Whether its release is refused.")


def read_specs(path: Path) -> list[ClusterSpec]:
    """Read the documents of a file; ``-`` is standard input.

    Raises:
        CliError: it cannot be read, or documents are refused; each problem has its line and key.
    """
    source = "stdin" if str(path) == STDIN else path.name
    try:
        data = sys.stdin.buffer.read() if str(path) == STDIN else path.read_bytes()
    except OSError as error:
        raise CliError(
            f"{path}: {error.strerror or error}", next_step="Check the path and its permissions."
        ) from error
    try:
        return parse_specs(data, source)
    except SiteErrors as errors:
        count = len(errors.problems) + errors.left_out
        raise CliError(
            f"{source} has {count} {'problem' if count == 1 else 'problems'}\n{errors}",
            next_step="Correct the lines named; docs/how-to/cli.md describes every key.",
        ) from errors


def parse_specs(data: bytes, source: str) -> list[ClusterSpec]:
    """Read YAML of one or more documents; ``source`` names it in errors.

    Raises:
        SiteErrors: something in it is refused; holds every problem.
    """
    if len(data) > BYTES_AT_MOST:
        raise SiteErrors(source, [SiteProblem(1, 1, "", "the file is over 1 MiB")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = SiteProblem(line, 1, "", "the text is not UTF-8", "save the file as UTF-8")
        raise SiteErrors(source, [problem]) from error
    specs: list[ClusterSpec] = []
    problems: list[SiteProblem] = []
    seen: dict[tuple[str | None, str], int] = {}
    for line, part in _documents(text):
        spec = _read(part, problems)
        if spec is None:
            continue
        first = seen.setdefault((spec.project, spec.name), line)
        if first != line:
            problems.append(
                SiteProblem(
                    line, 1, "name", f"cluster {spec.name} stands in line {first} too", "keep one"
                )
            )
        specs.append(spec)
    if not specs and not problems:
        problems.append(SiteProblem(1, 1, "", "there is no document", "begin with kind: Cluster"))
    if problems:
        raise SiteErrors(source, problems)
    return specs


def _documents(text: str) -> Iterator[tuple[int, str]]:
    """Each document with its first line's number, moved down to where it stands in the file: so its
    lines have the numbers of the file. A ``---`` in the first column always begins a document
    (YAML 1.2.2, section 9.1.2)."""
    lines = text.split("\n")
    starts = [0, *(n for n, line in enumerate(lines) if n and _MARKER.match(line)), len(lines)]
    for begin, end in pairwise(starts):
        part = [_MARKER.sub("   ", lines[begin]), *lines[begin + 1 : end]] if end > begin else []
        written = [n for n, line in enumerate(part) if line.strip() and line.lstrip()[0] != "#"]
        if written:
            yield begin + written[0] + 1, "\n" * begin + "\n".join(part)


def _read(text: str, problems: list[SiteProblem]) -> ClusterSpec | None:
    try:
        tree = parse_tree(text.encode())
    except yaml.YAMLError as error:
        problems.append(syntax_problem(error))
        return None
    problems += tree.problems
    try:
        spec = ClusterSpec.model_validate(tree.data)
    except ValidationError as error:
        problems += [_problem(tree, details) for details in error.errors(include_url=False)]
        return None
    names: set[str] = set()
    for index, pool in enumerate(spec.pools):
        if pool.name in names:
            where = tree.locate(("pools", index))
            message = f"there are two pools called {pool.name}"
            problems.append(SiteProblem(*where, f"pools[{index}].name", message, "rename one"))
        names.add(pool.name)
    return spec


def _problem(tree: Tree, details: ErrorDetails) -> SiteProblem:
    path: KeyPath = details["loc"]
    kind = details["type"]
    line, column = tree.locate(path, key=kind == "extra_forbidden")
    message, hint = _words(path, details)
    return SiteProblem(line, column, path_text(path) or "document", message, hint)


def _words(path: KeyPath, details: ErrorDetails) -> tuple[str, str | None]:
    kind, context = details["type"], details.get("ctx", {})
    given = _shown(details["input"])
    fields = _fields_at(path[:-1])
    about = fields.get(str(path[-1])) if path else None
    if kind == "extra_forbidden":
        near = did_you_mean(str(path[-1]), fields)
        return f"unknown key {path[-1]}", near or f"known keys: {', '.join(fields)}"
    if kind == "missing":
        return f"the key {path[-1]} is missing", about
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, not {given}", about
    if kind == "literal_error":
        expected = str(context["expected"])
        near = did_you_mean(str(details["input"]), [w.strip("' ") for w in expected.split(" or ")])
        return f"{given} is not {expected}", near
    if kind == "string_pattern_mismatch":
        return f"{given} is not a valid value", _PATTERN_HINTS.get(str(context["pattern"]))
    return f"{given}: {details['msg'][0].lower()}{details['msg'][1:]}", about


def _fields_at(path: KeyPath) -> dict[str, str]:
    """Keys, with descriptions, of the part at ``path``."""
    models: dict[str, type[SpecModel]] = {
        "pools": PoolSpec,
        "volumes": VolumeSpec,
        "placement": PlacementSpec,
    }
    model = models.get(str(path[0]), ClusterSpec) if path else ClusterSpec
    return {name: field.description or "" for name, field in model.model_fields.items()}


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
