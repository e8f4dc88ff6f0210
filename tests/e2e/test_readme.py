"""The README is executed: every console block, in order, as a new user would type it."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dflare.cli.cluster_spec import parse_specs

ROOT = Path(__file__).parents[2]
COMMAND_TIMEOUT_S = 840


def console_blocks() -> list[str]:
    """The commands of the README's console blocks, one string a block."""
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def clone() -> Iterator[Path]:
    """The working tree's files in a directory of their own, sharing the environment."""
    # Up to date, so that no make in the copy sets the shared environment up for the copy.
    subprocess.run(["make", "-s", ".venv"], cwd=ROOT, check=True)
    directory = Path(tempfile.mkdtemp(prefix="dflare-readme-"))
    directory.chmod(0o755)
    shutil.copy(ROOT / "Makefile", directory)
    for name in ("requirements", "src", "pyproject.toml", "hatch_build.py", "README.md"):
        (directory / name).symlink_to(ROOT / name)
    (directory / ".venv").symlink_to(ROOT / ".venv")
    yield directory
    subprocess.run(
        [ROOT / ".venv/bin/dflare", "down", "--data-dir", directory / ".dflare"], check=True
    )
    shutil.rmtree(directory, ignore_errors=True)


def home_with_key(directory: Path) -> Path:
    """A home directory with an SSH key pair, as a user has."""
    home = directory / "home"
    (home / ".ssh").mkdir(parents=True)
    public = Ed25519PrivateKey.generate().public_key()
    line = public.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()
    (home / ".ssh/id_ed25519.pub").write_text(f"{line} someone@example\n")
    return home


@pytest.mark.timeout(1200)
def test_a_new_user_can_type_the_readme_from_top_to_bottom(clone: Path) -> None:
    blocks = console_blocks()
    assert len(blocks) >= 6
    script = "\n".join(blocks)
    assert script.count("make test\n") == 1
    # The suite cannot run itself; that its target exists is what is left to show here.
    script = script.replace("make test\n", "make -n test\n")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("DFLARE_")},
        "HOME": str(home_with_key(clone)),
        "TERM": "dumb",
    }
    environment.pop("XDG_CONFIG_HOME", None)
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Cluster first is ready" in done.stdout + done.stderr
    assert "Cluster first is released" in done.stdout + done.stderr
    assert "redfish" in done.stdout.lower()
    assert "Everything held." in done.stdout
    picture = re.search(r"\]\((\S+\.svg)\)", (ROOT / "README.md").read_text())
    assert picture is not None
    assert "Everything" in (ROOT / picture[1]).read_text()


def test_the_readmes_document_of_a_cluster_is_the_cluster_that_it_orders() -> None:
    (text,) = re.findall(
        r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (spec,) = parse_specs(text.encode(), "README.md")
    (pool,) = spec.pools
    wanted = f"cluster create {spec.name} --nodes {pool.count} --type {pool.node_type}"
    assert any(wanted in block for block in console_blocks())
