"""The program itself: help, what it imports, completion."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def test_every_command_answers_help() -> None:
    from typer.testing import CliRunner

    from dflare.cli.main import COMMANDS, app

    for name in COMMANDS:
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0, name
        assert result.output.strip(), name


def test_help_imports_neither_the_client_nor_the_stores() -> None:
    code = (
        "import sys\nfrom dflare.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'httpx', 'pydantic', 'yaml', 'websockets', 'sqlalchemy'} & set(sys.modules)\n"
        "sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cluster" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(cli: Any, shell: str) -> None:
    result = cli("completion", shell)
    assert result.exit_code == 0
    assert "_DFLARE_COMPLETE" in result.stdout
    assert cli("completion", "tcsh").exit_code == 2


@pytest.mark.parametrize(
    ("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")]
)
def test_a_shell_accepts_its_completion_script(
    cli: Any, tmp_path: Path, shell: str, check: str
) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "completion"
    script.write_text(cli("completion", shell).stdout)
    subprocess.run([program, check, str(script)], check=True)
    registered = {
        "bash": f"source {script}; complete -p dflare",
        "zsh": f"autoload -U compinit; compinit -u -D; source {script}; print $_comps[dflare]",
        "fish": f"source {script}; complete -c dflare",
    }
    done = subprocess.run(
        [program, "-c", registered[shell]],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "dflare" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dflare cl", {"cluster"}),
        ("dflare cluster ", {"create", "list", "show", "delete"}),
        ("dflare cluster create a --dry", {"--dry-run"}),
    ],
)
def test_completion_knows_nouns_verbs_and_options(words: str, expected: set[str]) -> None:
    environment = {
        **os.environ,
        "_DFLARE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "dflare.cli.main"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected <= set(done.stdout.split())
