"""Reading a site document: every problem at once, each with its line and key."""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Final, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dflare.site.check import check
from dflare.site.document import SiteDocument
from dflare.site.problems import KeyPath, SiteErrors, SiteProblem, did_you_mean, path_text
from dflare.site.tree import Tree, parse_tree, syntax_problem
from dflare.site.values import NAME_PATTERN

BYTES_AT_MOST: Final = 32 << 20
# Looking for the nearest name costs milliseconds in a large site: only the first findings get one.
_NEAREST_NAMES_AT_MOST: Final = 200

_WANTED: Final = {
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "a group of keys",
    "dict_type": "a group of keys",
    "tuple_type": "a list",
}
_PATTERN_HINTS: Final = {
    NAME_PATTERN: "use 1 to 63 lower-case letters, digits, '-' and '.', as in gpu-node-1",
    r"^(https?|file)://\S+$": "write http://, https:// or file:// and the place",
    r"^[0-9a-f]{64}$": "write the 64 lower-case hexadecimal digits that sha256sum prints",
    r"^[A-Z]{3}$": "write the ISO 4217 code: EUR",
}


def load_site(path: Path) -> SiteDocument:
    """Read the site file at ``path``.

    Raises:
        OSError: it cannot be read.
        SiteErrors: it is refused; holds every problem with line, column, key and hint.
    """
    return parse_site(path.read_bytes(), source=path.name)


def parse_site(text: str | bytes, source: str = "site.yaml") -> SiteDocument:
    """Read a site document from YAML or JSON ``text``; ``source`` names it in errors.

    A document of 1,213 nodes takes about a second of CPU time: call it off the event loop.

    Raises:
        SiteErrors: it is refused; holds every problem with line, column, key and hint.
    """
    data = text.encode() if isinstance(text, str) else text
    if len(data) > BYTES_AT_MOST:
        size = SiteProblem(1, 1, "", f"the document is over {BYTES_AT_MOST >> 20} MiB", None)
        raise SiteErrors(source, [size])
    try:
        data.decode("utf-8")
        tree = parse_tree(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        problem = SiteProblem(line, column, "", "the text is not UTF-8", "save the file as UTF-8")
        raise SiteErrors(source, [problem]) from error
    except yaml.YAMLError as error:
        raise SiteErrors(source, [syntax_problem(error)]) from error
    document, problems = _read(tree)
    if problems or document is None:
        raise SiteErrors(source, problems)
    return document


def check_document(document: SiteDocument) -> None:
    """Check a document that was made by a program; its problems carry no lines (all are 0).

    Raises:
        SiteErrors: references, duplicates, overlaps or rails are wrong.
    """
    findings = list(check(_plain(document.model_dump(mode="json"))))
    if findings:
        problems = [
            SiteProblem(0, 0, path_text(f.path), f.message, f.full_hint())
            for f in findings[:_NEAREST_NAMES_AT_MOST]
        ]
        raise SiteErrors(document.name, problems, left_out=len(findings) - len(problems))


def _plain(value: object) -> object:
    """Lists for tuples: ``model_dump`` keeps the collections of the models."""
    if isinstance(value, dict):
        pairs = cast("dict[str, object]", value)
        return {key: _plain(item) for key, item in pairs.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[object]", value)]
    return value


def _read(tree: Tree) -> tuple[SiteDocument | None, list[SiteProblem]]:
    problems = list(tree.problems)
    if tree.data is None and problems:
        return None, problems
    document = None
    try:
        document = SiteDocument.model_validate(tree.data)
    except ValidationError as error:
        # A list whose every entry is refused is called too short as well: that would mislead.
        problems += [
            _shape_problem(tree, details)
            for details in error.errors(include_url=False)
            if not (details["type"] == "too_short" and details["input"])
        ]
    for finding in check(tree.data):
        line, column = tree.locate(finding.path)
        hint = finding.full_hint() if len(problems) < _NEAREST_NAMES_AT_MOST else finding.hint
        problems.append(SiteProblem(line, column, path_text(finding.path), finding.message, hint))
    return document, problems


def _shape_problem(tree: Tree, details: ErrorDetails) -> SiteProblem:
    path = tuple(part for part in details["loc"] if part != "[key]")
    kind = details["type"]
    line, column = tree.locate(path, key=kind in ("extra_forbidden", "string_pattern_mismatch"))
    message, hint = _words(path, details)
    return SiteProblem(line, column, path_text(path) or "site", message, hint)


def _words(path: KeyPath, details: ErrorDetails) -> tuple[str, str | None]:
    kind, context = details["type"], details.get("ctx", {})
    given = _shown(path, details["input"])
    if kind == "extra_forbidden":
        fields = _fields_at(path[:-1])
        near = did_you_mean(str(path[-1]), fields)
        return f"unknown key {path[-1]}", near or f"known keys: {', '.join(fields)}"
    if kind == "missing":
        return f"the key {path[-1]} is missing", _fields_at(path[:-1]).get(str(path[-1]))
    if kind == "site_value":
        return str(context["message"]), str(context["hint"])
    if kind in _WANTED:
        quotes = kind == "string_type" and not isinstance(details["input"], list | dict)
        hint = "put it in quotes" if quotes and details["input"] is not None else None
        return f"must be {_WANTED[kind]}, not {given}", hint or _fields_at(path[:-1]).get(
            str(path[-1]) if path else ""
        )
    if kind in ("literal_error", "enum"):
        expected = str(context["expected"])
        near = did_you_mean(str(details["input"]), [w.strip("' ") for w in expected.split(",")])
        return f"{given} is not one of {expected}", near
    if kind == "string_pattern_mismatch":
        return f"{given} is not a valid value", _PATTERN_HINTS.get(str(context["pattern"]))
    if kind == "too_short":
        return "the list is empty", "at least one entry is needed"
    return f"{given}: {details['msg'][0].lower()}{details['msg'][1:]}", None


def _shown(path: KeyPath, value: object) -> str:
    """A value as an error may show it: never a password, never a whole group of keys."""
    if path and path[-1] == "password":
        return "this"
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


def _fields_at(path: KeyPath) -> dict[str, str]:
    """Keys, with descriptions, of the model at ``path``; empty where no model stands there."""
    model: type[BaseModel] = SiteDocument
    in_table = False
    for part in path:
        if isinstance(part, int):
            continue
        if in_table:
            in_table = False
            continue
        field = model.model_fields.get(part)
        inner = next(_models(field.annotation), None) if field else None
        if field is None or inner is None:
            return {}
        in_table = get_origin(field.annotation) is dict
        model = inner
    return {name: field.description or "" for name, field in model.model_fields.items()}


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """Models inside an annotation such as ``tuple[Node, ...]`` or ``dict[Name, Credential]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated, tuple, dict):
        for inner in get_args(annotation):
            yield from _models(inner)
