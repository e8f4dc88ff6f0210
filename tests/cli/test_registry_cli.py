"""`dflare registry` and `dflare repository`: what is asked of the API, and what is shown."""

import json
from pathlib import Path
from typing import Any

import pytest

REPOSITORIES = "/projects/prj_1/repositories"
REPOSITORY = {
    "id": "repo_1",
    "name": "base",
    "reference": "dflare.test/red/lab/base",
    "organization_id": "org_1",
    "project_id": "prj_1",
    "size_bytes": 3 * 2**29,
    "manifests": 4,
    "tags": 2,
    "created_by": "usr_1",
    "created_at": "2026-01-01T00:00:00Z",
    "pushed_at": "2026-01-01T00:00:00Z",
    "version": 3,
}
TAG = {
    "name": "v1",
    "digest": "sha256:" + "a" * 64,
    "media_type": "application/vnd.oci.image.manifest.v1+json",
    "artifact_type": "",
    "size_bytes": 2**20,
    "updated_by": "usr_1",
    "updated_at": "2026-01-01T00:00:00Z",
}
TOKEN = {"id": "tok_1", "secret": "dfl_secret", "expires_at": "2026-02-01T00:00:00Z"}


def page(*items: Any) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": None}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, name: str, status: int = 0) -> None:
    """A program that notes what it is told."""
    program = folder / name
    program.write_text(
        f'#!/bin/sh\necho "$0 $@" > "{folder}/arguments"\nread -r line\n'
        f'echo "$line" > "{folder}/input"\nexit {status}\n'
    )
    program.chmod(0o755)


def test_a_list_shows_what_is_held_and_what_to_pull(stub: Any, cli: Any) -> None:
    stub.answer("GET", REPOSITORIES, page(REPOSITORY))
    shown = cli("repository", "list").stdout
    for text in ("base", "1.5 GiB", "dflare.test/red/lab/base"):
        assert text in shown
    assert json.loads(cli("repository", "list", "-o", "json").stdout) == [REPOSITORY]


def test_the_registry_of_a_project_says_what_to_push_to(stub: Any, cli: Any) -> None:
    registry = {
        "host": "dflare.test",
        "prefix": "dflare.test/red/lab/",
        "stored_bytes": 2**20,
        "uploading_bytes": 0,
        "limit_bytes": 2**30,
    }
    stub.answer("GET", "/projects/prj_1/registry", registry)
    result = cli("registry", "show")
    assert "1.0 GiB" in result.stdout
    assert "docker push dflare.test/red/lab/NAME:TAG" in result.stderr


def test_tags_are_those_of_the_repository_that_was_found(stub: Any, cli: Any) -> None:
    stub.answer("GET", f"{REPOSITORIES}/base", REPOSITORY)
    stub.answer("GET", f"{REPOSITORIES}/repo_1/tags", page(TAG))
    shown = cli("repository", "tags", "base").stdout
    assert "v1" in shown
    assert TAG["digest"] in shown


def test_a_name_with_a_slash_is_looked_for_in_the_list(stub: Any, cli: Any) -> None:
    stub.answer("GET", REPOSITORIES, page({**REPOSITORY, "name": "team/base"}))
    assert "repo_1" in cli("repository", "show", "team/base").stdout
    ((query, _, _),) = stub.asked("GET", REPOSITORIES)
    assert query["name"] == "team/base"


def test_one_that_is_not_there_is_said_to_be_not_there(stub: Any, cli: Any) -> None:
    stub.answer("GET", REPOSITORIES, page())
    result = cli("repository", "show", "team/none")
    assert result.exit_code != 0
    assert "no repository team/none" in result.stderr


def test_a_deletion_is_asked_for_and_names_what_was_found(stub: Any, cli: Any) -> None:
    stub.answer("GET", f"{REPOSITORIES}/base", REPOSITORY)
    stub.answer("DELETE", f"{REPOSITORIES}/repo_1", {})
    stub.answer("DELETE", f"{REPOSITORIES}/repo_1/tags/v1", {})
    refused = cli("repository", "delete", "base")
    assert refused.exit_code != 0
    assert stub.asked("DELETE", f"{REPOSITORIES}/repo_1") == []
    assert cli("repository", "delete", "base:v1", "--yes").exit_code == 0
    assert stub.asked("DELETE", f"{REPOSITORIES}/repo_1") == []
    assert len(stub.asked("DELETE", f"{REPOSITORIES}/repo_1/tags/v1")) == 1
    assert cli("repository", "delete", "base", "--yes").exit_code == 0
    assert len(stub.asked("DELETE", f"{REPOSITORIES}/repo_1")) == 1


def test_a_login_gives_the_client_a_token_that_no_command_line_shows(
    stub: Any, cli: Any, programs: Path
) -> None:
    install(programs, "podman")
    stub.answer("GET", "/whoami", {"name": "ada@red"})
    stub.answer("POST", "/tokens", TOKEN)
    result = cli("registry", "login", "--days", "7")
    assert result.exit_code == 0, result.stderr
    told = (programs / "arguments").read_text()
    host = stub.url.removeprefix("http://")
    assert told.split()[1:] == [
        *("login", "--tls-verify=false", "--username", "ada@red", "--password-stdin", host)
    ]
    assert (programs / "input").read_text() == "dfl_secret\n"
    assert "dfl_secret" not in result.output + told
    ((_, _, body),) = stub.asked("POST", "/tokens")
    assert json.loads(body)["expires_in_s"] == 7 * 86_400


def test_a_login_that_fails_leaves_no_token(stub: Any, cli: Any, programs: Path) -> None:
    install(programs, "docker", status=1)
    stub.answer("GET", "/whoami", {"name": "ada@red"})
    stub.answer("POST", "/tokens", TOKEN)
    stub.answer("DELETE", "/tokens/tok_1", {})
    result = cli("registry", "login")
    assert result.exit_code != 0
    assert "revoked" in result.stderr
    assert len(stub.asked("DELETE", "/tokens/tok_1")) == 1


def test_without_a_client_nothing_is_asked_for(stub: Any, cli: Any, programs: Path) -> None:
    for arguments in ((), ("--with", "podman"), ("--with", "rm")):
        result = cli("registry", "login", *arguments)
        assert result.exit_code != 0
    assert stub.requests == []


def test_what_was_held_is_listed_as_usage(stub: Any, cli: Any) -> None:
    entry = {
        "interval_id": "rui_1",
        "stored_bytes": 2**30,
        "usage_from": "2026-01-01T00:00:00Z",
        "usage_to": None,
    }
    stub.answer("GET", "/projects/prj_1/usage/registry", page(entry))
    shown = cli("usage", "registry").stdout
    assert "1.0 GiB" in shown
    assert "still runs" in shown
