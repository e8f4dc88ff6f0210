"""Rules of DESIGN section 5 that hold for every file, read from the source itself."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dflare
from dflare.services.orchestrator.sagas import SAGAS

ROOT = Path(dflare.__file__).parent
STEP = re.compile(r"([a-z]+)\.[a-z_]+@[1-9][0-9]*")
PLATFORM = ("kit", "services", "drivers", "apps")


def trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "versions" not in path.parts:
                yield path.relative_to(ROOT), ast.parse(path.read_text())


def calls(tree: ast.Module) -> Iterator[str]:
    """The dotted names that are called, such as ``datetime.now``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def steps_named_in_sagas() -> set[str]:
    names: set[str] = set()
    for plan in SAGAS.values():
        names |= {side.name for side in (*plan.park, plan.replace) if side is not None}
        for step in plan.steps:
            names |= {name for name in (step.name, step.undo, step.quarantine) if name}
    return names


def steps_written_by(service: str) -> set[str]:
    """The step names that stand alone as a text in the acting service's own code."""
    found: set[str] = set()
    for path, tree in trees(f"services/{service}"):
        if "sagas" in path.parts or path.name == "contract.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                match = STEP.fullmatch(node.value)
                if match and match[1] == service:
                    found.add(node.value)
    return found


@pytest.mark.parametrize("step", sorted(steps_named_in_sagas()))
def test_every_step_that_a_saga_names_is_written_by_its_service(step: str) -> None:
    assert step in steps_written_by(step.partition(".")[0])


def test_every_step_without_an_undo_has_a_reason_above_it() -> None:
    seen = 0
    for path, tree in trees("services/orchestrator/sagas"):
        source = (ROOT / path).read_text().splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "PlannedStep":
                continue
            if any(keyword.arg == "undo" for keyword in node.keywords):
                continue
            assert re.search("undo", "\n".join(source[: node.lineno - 1]), re.IGNORECASE), path
            seen += 1
    assert seen >= 5


def test_no_service_commits_or_rolls_back() -> None:
    found = [
        f"{path}: {called}"
        for path, tree in trees("services")
        for called in calls(tree)
        if called.rpartition(".")[2] in {"commit", "rollback"}
    ]
    assert found == []


def test_only_the_clock_reads_the_time_of_day() -> None:
    forbidden = {"datetime.now", "datetime.utcnow", "datetime.today", "time.time", "date.today"}
    found = [
        f"{path}: {called}"
        for path, tree in trees(*PLATFORM)
        for called in calls(tree)
        if called in forbidden and path != Path("kit/clock.py")
    ]
    assert found == []


def test_nothing_blocks_the_event_loop_by_sleeping() -> None:
    found = [str(path) for path, tree in trees(*PLATFORM) if "time.sleep" in set(calls(tree))]
    assert found == []


def test_every_connection_of_the_platform_comes_from_the_kit() -> None:
    found = [
        f"{path}: {called}"
        for path, tree in trees("services", "drivers", "apps")
        for called in calls(tree)
        if called.rpartition(".")[2] in {"create_async_engine", "create_engine"}
    ]
    assert found == []


def test_drivers_never_touch_the_database() -> None:
    for path, tree in trees("drivers"):
        for node in ast.walk(tree):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            assert not any(name.startswith(("sqlalchemy", "asyncpg")) for name in names), path


def test_every_client_of_a_device_refuses_an_open_transaction() -> None:
    called = {path: set(calls(tree)) for path, tree in trees("drivers")}
    clients = {
        path: names
        for path, names in called.items()
        if any(name.endswith(").request") for name in names)
    }
    assert len(clients) >= 2
    assert all("assert_no_transaction" in names for names in clients.values()), clients


def test_ports_have_at_most_seven_methods_and_say_what_each_means() -> None:
    seen = 0
    for path, tree in trees("drivers"):
        if path.name != "port.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).startswith("Protocol") for base in node.bases
            ):
                methods = [
                    item
                    for item in node.body
                    if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                ]
                assert len(methods) <= 7, f"{path}: {node.name}"
                assert all(ast.get_docstring(method) for method in methods), f"{path}: {node.name}"
                seen += 1
    assert seen >= 3


@pytest.mark.parametrize(
    "schema", ["auth", "baremetal", "clusters", "metering", "network", "registry", "volumes"]
)
def test_no_sql_of_a_service_names_the_schema_of_another(schema: str) -> None:
    others = {"auth", "baremetal", "clusters", "metering", "network", "orchestrator", "volumes"}
    others |= {"registry"}
    others -= {schema}
    reach = re.compile(
        rf"\b(?:FROM|JOIN|INTO|UPDATE)\s+({'|'.join(sorted(others))})\.", re.IGNORECASE
    )
    for path, tree in trees(f"services/{schema}"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not reach.search(node.value), f"{path}:{node.lineno}"
