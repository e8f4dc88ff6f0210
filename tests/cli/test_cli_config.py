"""Promises about contexts, tokens and where the API is."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api_stub import store

from dflare.cli.client import Api
from dflare.cli.config import ConfigFile, Context, resolve
from dflare.cli.errors import NotLoggedInError


def saved(path: Path) -> Any:
    return json.loads(path.read_text())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_and_its_folder_are_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.json"
    store(path, url="http://x", access_token="t")
    assert mode(path) == 0o600
    assert mode(path.parent) & 0o077 == 0


def test_a_file_that_others_may_read_is_closed_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    file = store(path, url="http://x")
    path.chmod(0o644)
    file.load()
    assert mode(path) == 0o600


def test_the_users_configuration_directory_is_respected(tmp_path: Path) -> None:
    assert ConfigFile.of({"XDG_CONFIG_HOME": str(tmp_path)}).path == (
        tmp_path / "dflare" / "config.json"
    )
    chosen = ConfigFile.of({"XDG_CONFIG_HOME": str(tmp_path), "DFLARE_CLI_CONFIG": "/x/y.json"})
    assert chosen.path == Path("/x/y.json")


def test_a_stored_token_is_not_sent_to_another_url(tmp_path: Path) -> None:
    file = store(tmp_path / "c.json", url="http://a", access_token="secret")
    elsewhere = resolve(file, {"DFLARE_CLI_URL": "http://b"}, None)
    assert elsewhere.context.access_token == ""
    assert resolve(file, {"DFLARE_CLI_URL": "http://a/"}, None).context.access_token == "secret"


def test_the_environment_overrides_the_file_and_an_option_overrides_both(tmp_path: Path) -> None:
    file = store(tmp_path / "c.json", url="http://a", access_token="t", project="p0")
    environment = {"DFLARE_CLI_TOKEN": "other", "DFLARE_CLI_PROJECT": "p1"}
    found = resolve(file, environment, None)
    assert (found.name, found.context.access_token, found.context.project) == ("", "other", "p1")
    assert resolve(file, environment, "p2").context.project == "p2"


def test_without_configuration_the_platform_in_the_data_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.json").write_text('{"urls": {"api": "http://127.0.0.1:1234"}}')
    found = resolve(ConfigFile(tmp_path / "none.json"), {"DFLARE_DATA_DIR": str(tmp_path)}, None)
    assert found.context.url == "http://127.0.0.1:1234"


def test_a_local_context_follows_the_port_of_the_next_start(tmp_path: Path) -> None:
    file = store(tmp_path / "c.json", url="http://127.0.0.1:1", data_dir=str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.json").write_text('{"urls": {"api": "http://127.0.0.1:2"}}')
    assert resolve(file, {}, None).context.url == "http://127.0.0.1:2"


def test_a_damaged_file_is_one_message_with_the_way_out(fresh_cli: Any) -> None:
    fresh_cli.config.parent.mkdir()
    fresh_cli.config.write_text("{]")
    result = fresh_cli("context", "list")
    assert result.exit_code == 1
    assert "is not a configuration of dflare" in result.stderr
    assert "next: Remove it and run `dflare login`." in result.stderr


def test_nothing_configured_says_how_to_begin(fresh_cli: Any) -> None:
    result = fresh_cli("cluster", "list")
    assert result.exit_code == 2
    assert "dflare up" in result.stderr
    assert "dflare login" in result.stderr


def test_contexts_are_listed_without_tokens_and_switched(fresh_cli: Any) -> None:
    file = store(fresh_cli.config, url="http://a", access_token="sesame")
    with file.locked():
        file.save(file.load().with_context("there", Context(url="http://b")))
    listed = fresh_cli("context", "list")
    assert "http://a" in listed.stdout
    assert "sesame" not in listed.output
    assert fresh_cli("context", "use", "there").exit_code == 0
    assert "http://b" in fresh_cli("context", "show").stdout
    refused = fresh_cli("context", "use", "nowhere")
    assert refused.exit_code == 2
    assert "here, there" in refused.stderr


def test_login_by_password_fills_the_issuers_form(stub: Any, fresh_cli: Any) -> None:
    stub.answer("GET", "/whoami", {"name": "ada", "subject": "usr_1", "kind": "user"})
    result = fresh_cli(
        *("login", "--url", stub.url, "--username", "ada", "--password-stdin"), text="right\n"
    )
    assert result.exit_code == 0, result.output
    assert "as ada" in result.stderr
    config = saved(fresh_cli.config)
    assert config["contexts"][config["current"]]["access_token"] in stub.tokens
    assert "right" not in fresh_cli.config.read_text()


def test_a_wrong_password_is_told_and_nothing_is_kept(stub: Any, fresh_cli: Any) -> None:
    result = fresh_cli(
        *("login", "--url", stub.url, "--username", "ada", "--password-stdin"), text="wrong\n"
    )
    assert result.exit_code == 3
    assert "ada cannot log in" in result.stderr
    assert not fresh_cli.config.exists()


def test_login_by_device_shows_the_code_and_waits(stub: Any, fresh_cli: Any) -> None:
    stub.answer("GET", "/whoami", {"name": "ada"})
    stub.pending_device_polls = 2
    result = fresh_cli("login", "--url", stub.url, "--device")
    assert result.exit_code == 0, result.output
    assert "ABCD-EFGH" in result.stderr
    assert stub.pending_device_polls == 0


def test_login_by_token_and_logout_forget_it(stub: Any, fresh_cli: Any) -> None:
    stub.answer("GET", "/whoami", {"name": "robot"})
    assert fresh_cli("login", "--url", stub.url, "--token-stdin", text="good\n").exit_code == 0
    assert fresh_cli("logout").exit_code == 0
    assert "good" not in fresh_cli.config.read_text()
    after = fresh_cli("whoami")
    assert after.exit_code == 3
    assert "you are not logged in" in after.stderr


def test_login_local_uses_the_operators_password_file(stub: Any, fresh_cli: Any) -> None:
    stub.answer("GET", "/whoami", {"name": "operator"})
    data = fresh_cli.home / "data"
    (data / "run").mkdir(parents=True)
    (data / "secrets").mkdir()
    (data / "run" / "state.json").write_text(json.dumps({"urls": {"api": stub.url}}))
    (data / "secrets" / "operator-password").write_text("right\n")
    result = fresh_cli("login", "--local")
    assert result.exit_code == 0, result.output
    assert saved(fresh_cli.config)["current"] == "local"


def test_two_ways_to_log_in_at_once_are_refused(stub: Any, fresh_cli: Any) -> None:
    result = fresh_cli("login", "--url", stub.url, "--device", "--browser")
    assert result.exit_code == 2


def test_an_expired_token_is_renewed_before_it_is_used(stub: Any, fresh_cli: Any) -> None:
    stub.answer("GET", "/sites", {"items": [], "next_cursor": None})
    stub.refresh_tokens.add("r1")
    store(fresh_cli.config, url=stub.url, access_token="old", refresh_token="r1", expires_at=1.0)
    assert fresh_cli("site", "list").exit_code == 0
    assert stub.refreshed == 1
    assert len(stub.asked("GET", "/sites")) == 1
    kept = saved(fresh_cli.config)["contexts"]["here"]
    assert kept["access_token"] in stub.tokens
    assert kept["refresh_token"] in stub.refresh_tokens


def test_a_token_that_the_api_refuses_is_renewed_once(stub: Any, fresh_cli: Any) -> None:
    stub.answer("GET", "/sites", {"items": [], "next_cursor": None})
    stub.refresh_tokens.add("r1")
    store(fresh_cli.config, url=stub.url, access_token="revoked", refresh_token="r1")
    assert fresh_cli("site", "list").exit_code == 0
    assert stub.refreshed == 1


def test_a_login_that_ended_says_to_log_in_again(stub: Any, fresh_cli: Any) -> None:
    store(fresh_cli.config, url=stub.url, access_token="old", refresh_token="gone", expires_at=1.0)
    result = fresh_cli("site", "list")
    assert result.exit_code == 3
    assert "next: Run `dflare login`." in result.stderr


def test_commands_at_once_use_a_refresh_token_once(stub: Any, tmp_path: Path) -> None:
    stub.refresh_tokens.add("r1")
    file = store(
        tmp_path / "c.json", url=stub.url, access_token="old", refresh_token="r1", expires_at=1.0
    )
    stub.answer("GET", "/sites", {"items": [], "next_cursor": None})

    def ask(_: int) -> list[Any]:
        with Api(file, resolve(file, {}, None)) as api:
            return api.items("/sites")

    connections = [resolve(file, {}, None) for _ in range(6)]

    def ask_with_what_was_read_before(index: int) -> list[Any]:
        with Api(file, connections[index]) as api:
            return api.items("/sites")

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask_with_what_was_read_before, range(6))) == [[]] * 6
    assert ask(0) == []
    assert stub.refreshed == 1


def test_a_call_without_a_token_sends_nothing(stub: Any, tmp_path: Path) -> None:
    file = store(tmp_path / "c.json", url=stub.url)
    with Api(file, resolve(file, {}, None)) as api, pytest.raises(NotLoggedInError):
        api.get("/sites")
    assert stub.requests == []
