"""A site from a fleet list in CSV: ``sn,cpu_milli,memory_mib,gpu,model``, one server a row.

The columns are those of Alibaba's cluster-trace-gpu-v2023. The list says nothing of vendors, racks
or cables; ``dflare.site.layout`` supplies them by the rules that docs/how-to/site.md states.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from dflare.site.document import (
    Cpu,
    Disk,
    GpuSet,
    GpuVendor,
    NodeType,
    ServerVendor,
    SiteDocument,
)
from dflare.site.layout import NODES_AT_MOST, RAILS, LayoutOptions, PlannedNode, lay_out
from dflare.site.problems import SiteErrors, SiteProblem, did_you_mean
from dflare.site.values import NAME_PATTERN

COLUMNS: Final = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
CURRENCY: Final = "EUR"
# Price of one GPU for one hour, and of one core of a server without GPU. Stated, not observed.
PRICE_PER_GPU_HOUR: Final = {
    "A10": Decimal("0.80"),
    "G1": Decimal("1.00"),
    "G2": Decimal("1.20"),
    "G3": Decimal("2.00"),
    "P100": Decimal("0.50"),
    "T4": Decimal("0.40"),
    "V100M16": Decimal("0.90"),
    "V100M32": Decimal("1.10"),
}
PRICE_PER_GPU_HOUR_OF_OTHERS: Final = Decimal("1.00")
PRICE_PER_CORE_HOUR: Final = Decimal("0.02")
# G1 to G3 are undisclosed models: their memory is assumed.
GPU_MEMORY_GIB: Final = {
    "A10": 24,
    "G1": 24,
    "G2": 24,
    "G3": 48,
    "P100": 16,
    "T4": 16,
    "V100M16": 16,
    "V100M32": 32,
}
GPU_MEMORY_GIB_OF_OTHERS: Final = 16

_GPUS_AT_MOST: Final = 64
_NUMBER = re.compile(r"[0-9]{1,12}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,39}")


@dataclass(frozen=True)
class _Row:
    sn: str
    cores: int
    memory_gib: int
    gpus: int
    model: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.cores, self.memory_gib


def import_fleet(csv_path: Path, options: LayoutOptions | None = None) -> SiteDocument:
    """Lay out the fleet listed in ``csv_path`` as a site. Nothing is written.

    Cores and GiB are rounded down, so that no server promises more than it has. Columns beside the
    five known ones are ignored.

    Raises:
        OSError: the file cannot be read.
        SiteErrors: a header or rows are wrong; every problem with line, column and column's name.
    """
    rows = _read(csv_path)
    rows.sort(key=lambda row: (row.model, row.sn))
    vendor = (options or LayoutOptions()).vendors[0]
    types = _node_types(rows, vendor)
    planned = [PlannedNode(row.sn, types[row.model, row.gpus, row.shape]) for row in rows]
    return lay_out(planned, options or LayoutOptions())


def _read(path: Path) -> list[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problem = SiteProblem(1, 1, "", "the file is not UTF-8 text", "export it as CSV in UTF-8")
        raise SiteErrors(path.name, [problem]) from error
    lines = list(_records(text, path.name))
    if not lines:
        header = ",".join(COLUMNS)
        problem = SiteProblem(1, 1, "", "the file is empty", f"the first line must be {header}")
        raise SiteErrors(path.name, [problem])
    places = _header(lines[0][1], path.name)
    reader = _RowReader(places, len(lines[0][1]))
    rows = [row for line, fields in lines[1:] if (row := reader.read(line, fields))]
    if not reader.problems and not rows:
        reader.refuse(1, 1, "", "the file lists no server", "add a row for each server")
    if len(rows) > NODES_AT_MOST:
        reader.refuse(1, 1, "", f"more than {NODES_AT_MOST:,} servers", "split it into sites")
    if reader.problems:
        raise SiteErrors(path.name, reader.problems)
    return rows


def _records(text: str, source: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not empty with the line it starts in."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        problem = SiteProblem(line, 1, "", f"this is no CSV: {error}", "look for a stray quote")
        raise SiteErrors(source, [problem]) from error


def _header(fields: list[str], source: str) -> dict[str, int]:
    names = [name.strip() for name in fields]
    problems: list[SiteProblem] = []
    for column in COLUMNS:
        count = names.count(column)
        if count == 0:
            near = did_you_mean(column, [name for name in names if name not in COLUMNS])
            hint = near or f"the first line must name {', '.join(COLUMNS)}"
            problems.append(SiteProblem(1, 1, column, f"the column {column} is missing", hint))
        elif count > 1:
            problems.append(SiteProblem(1, 1, column, f"the column {column} stands twice", None))
    if problems:
        raise SiteErrors(source, problems)
    return {column: names.index(column) for column in COLUMNS}


class _RowReader:
    """Turns records into rows, and keeps what is wrong with the others."""

    def __init__(self, places: dict[str, int], width: int) -> None:
        self.problems: list[SiteProblem] = []
        self._places = places
        self._width = width
        self._first_line: dict[str, int] = {}

    def refuse(self, line: int, column: int, name: str, message: str, hint: str | None) -> None:
        self.problems.append(SiteProblem(line, column, name, message, hint))

    def read(self, line: int, fields: Sequence[str]) -> _Row | None:
        before = len(self.problems)
        if len(fields) != self._width:
            self.refuse(
                line, 1, "", f"{len(fields)} fields, the header has {self._width}", "one for each"
            )
            return None
        cells = {name: fields[place].strip() for name, place in self._places.items()}
        starts = {
            name: sum(len(field) + 1 for field in fields[:place]) + 1
            for name, place in self._places.items()
        }
        self._serial(line, starts["sn"], cells["sn"].lower())
        cores = self._number(line, starts, "cpu_milli", cells, least=1000, most=10**7)
        memory = self._number(line, starts, "memory_mib", cells, least=1024, most=10**9)
        gpus = self._number(line, starts, "gpu", cells, least=0, most=_GPUS_AT_MOST)
        if gpus is not None:
            self._model(line, starts["model"], cells["model"], gpus)
        if cores is None or memory is None or gpus is None or len(self.problems) > before:
            return None
        return _Row(cells["sn"].lower(), cores // 1000, memory // 1024, gpus, cells["model"])

    def _serial(self, line: int, column: int, serial: str) -> None:
        if not re.match(NAME_PATTERN, serial):
            hint = "use 1 to 63 letters, digits, '-' and '.': it becomes the node's name"
            self.refuse(line, column, "sn", f"{serial!r} is no name for a node", hint)
        elif serial in self._first_line:
            first = self._first_line[serial]
            message = f"{serial} stands twice, first in line {first}"
            self.refuse(line, column, "sn", message, "each server may stand once")
        else:
            self._first_line[serial] = line

    def _number(
        self,
        line: int,
        starts: dict[str, int],
        name: str,
        cells: dict[str, str],
        *,
        least: int,
        most: int,
    ) -> int | None:
        written = cells[name]
        if _NUMBER.fullmatch(written) and least <= int(written) <= most:
            return int(written)
        message = f"{written!r} is no whole number"
        if re.fullmatch(r"-[0-9]+", written):
            message = f"{written} is negative"
        elif _NUMBER.fullmatch(written):
            message = f"{written} is out of range"
        self.refuse(line, starts[name], name, message, f"write a number from {least} to {most}")
        return None

    def _model(self, line: int, column: int, model: str, gpus: int) -> None:
        if gpus == 0 and model:
            self.refuse(line, column, "model", f"{model} is named, and gpu is 0", "correct one")
        elif gpus > 0 and not _MODEL.fullmatch(model):
            hint = "use letters, digits, '-' and '.', as in V100M32"
            self.refuse(line, column, "model", f"{model!r} is no GPU model", hint)


def _node_types(
    rows: Sequence[_Row], vendor: ServerVendor
) -> dict[tuple[str, int, tuple[int, int]], NodeType]:
    """Name a type after model and GPU count; rarer shapes of it carry cores and memory too."""
    shapes: dict[tuple[str, int], Counter[tuple[int, int]]] = {}
    for row in rows:
        shapes.setdefault((row.model, row.gpus), Counter())[row.shape] += 1
    types: dict[tuple[str, int, tuple[int, int]], NodeType] = {}
    for (model, gpus), counted in shapes.items():
        usual = max(counted, key=lambda shape: (counted[shape], shape))
        for shape in counted:
            name = f"{model.lower()}-{gpus}" if gpus else "cpu"
            if shape != usual:
                name += f"-{shape[0]}c-{shape[1]}g"
            types[model, gpus, shape] = _node_type(name, model, gpus, shape, vendor)
    return types


def _node_type(
    name: str, model: str, gpus: int, shape: tuple[int, int], vendor: ServerVendor
) -> NodeType:
    cores, memory_gib = shape
    per_gpu = PRICE_PER_GPU_HOUR.get(model, PRICE_PER_GPU_HOUR_OF_OTHERS)
    disks = [Disk(name="nvme0n1", size_gib=894)]
    if gpus == RAILS:
        disks.append(Disk(name="nvme1n1", size_gib=3576))
    return NodeType(
        name=name,
        vendor=vendor,
        model=f"{gpus}x {model} server" if gpus else "CPU server",
        gpu=GpuSet(
            vendor=GpuVendor.NVIDIA,
            model=model,
            count=gpus,
            memory_gib=GPU_MEMORY_GIB.get(model, GPU_MEMORY_GIB_OF_OTHERS),
        )
        if gpus
        else None,
        cpu=Cpu(cores=cores, sockets=2 if cores > 1 else 1),
        memory_gib=memory_gib,
        disks=tuple(disks),
        infiniband_rails=RAILS if gpus == RAILS else 0,
        price_per_node_hour=per_gpu * gpus if gpus else PRICE_PER_CORE_HOUR * cores,
        currency=CURRENCY,
    )
