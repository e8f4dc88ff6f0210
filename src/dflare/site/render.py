"""Writing a site document: readable, in a stable order, and read back as it was."""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Final, cast

from dflare.site.document import SiteDocument

_LINE_LENGTH: Final = 100
_HEADER: Final = "# A Dflare site document. docs/how-to/site.md describes every key.\n"
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
# Words that one of YAML 1.1 and 1.2 reads as something else than text.
_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
# JSON leaves these as they are, YAML 1.2.2 (production 1) does not allow them unescaped.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def render_site(document: SiteDocument) -> str:
    """Write ``document`` as YAML text, with its passwords, without values at their default."""
    data = cast("dict[str, object]", document.model_dump(mode="json", exclude_defaults=True))
    accounts = cast("dict[str, dict[str, object]]", data["credentials"])
    for name, credential in document.credentials.items():
        if credential.password is not None:
            accounts[name]["password"] = credential.password.get_secret_value()
    return _HEADER + render_data({"version": document.version, **data})


def render_data(data: dict[str, object]) -> str:
    """Write plain data (dicts, lists, text, numbers, booleans, None) as YAML 1.1 and 1.2 text."""
    lines: list[str] = []
    _write_mapping(data, 0, "", lines)
    return "\n".join(lines) + "\n"


def write_private(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all, readable by its owner only.

    Raises:
        OSError: the folder cannot be written or the disk is full; an old file is left as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_site(path: Path, document: SiteDocument) -> None:
    """Write ``document`` to ``path`` as ``write_private`` does; the file holds passwords."""
    write_private(path, render_site(document))


def _write_mapping(data: dict[str, object], indent: int, lead: str, lines: list[str]) -> None:
    """Append ``data`` in block style; ``lead`` (``- `` or nothing) stands before its first key."""
    for i, (key, value) in enumerate(data.items()):
        start = f"{' ' * (indent - len(lead))}{lead}" if i == 0 else " " * indent
        opening = f"{start}{_scalar(key)}:"
        short = _flow(value)
        fits = short is not None and len(opening) + 1 + len(short) <= _LINE_LENGTH
        if isinstance(value, dict) and value and (indent == 0 or not fits):
            lines.append(opening)
            _write_mapping(cast("dict[str, object]", value), indent + 2, "", lines)
        elif isinstance(value, list) and value and not fits:
            lines.append(opening)
            _write_list(cast("list[object]", value), indent + 2, lines)
        else:
            lines.append(f"{opening} {short}")


def _write_list(items: list[object], indent: int, lines: list[str]) -> None:
    for item in items:
        short = _flow(item)
        start = f"{' ' * indent}- "
        if isinstance(item, dict) and (short is None or len(start) + len(short) > _LINE_LENGTH):
            _write_mapping(cast("dict[str, object]", item), indent + 2, "- ", lines)
        elif short is None:
            raise TypeError("a list directly inside a list has no place in these documents")
        else:
            lines.append(start + short)


def _flow(value: object) -> str | None:
    """``value`` on one line; None where it nests too deep to be read there."""
    if isinstance(value, dict):
        pairs = cast("dict[str, object]", value).items()
        parts = [(_scalar(key), _flow_item(item)) for key, item in pairs]
        if any(text is None for _, text in parts):
            return None
        return "{" + ", ".join(f"{key}: {text}" for key, text in parts) + "}"
    return _flow_item(value)


def _flow_item(value: object) -> str | None:
    if isinstance(value, dict):
        return None if value else "{}"
    if isinstance(value, list):
        items = cast("list[object]", value)
        if any(isinstance(item, list | dict) for item in items):
            return None
        return "[" + ", ".join(_scalar(item) for item in items) + "]"
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        quoted = json.dumps(value, ensure_ascii=False)
        return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
    return json.dumps(value)
