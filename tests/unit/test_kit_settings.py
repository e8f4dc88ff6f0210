"""Promises of settings."""

from typing import ClassVar

import pytest

from dflare.kit.settings import PlatformSettings, Settings, SettingsError


class Tuning(Settings):
    prefix: ClassVar[str] = "DFLARE_TEST_TUNING_"
    foreign_prefixes: ClassVar[tuple[str, ...]] = ("DFLARE_TEST_TUNING_DEEP_",)

    rounds: int
    speed: float = 1.0
    careful: bool = False


def test_settings_are_read_and_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFLARE_TEST_TUNING_ROUNDS", "3")
    monkeypatch.setenv("DFLARE_TEST_TUNING_CAREFUL", "true")
    assert Tuning.read() == Tuning(rounds=3, careful=True)


def test_an_unknown_setting_is_refused_by_name_with_those_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DFLARE_TEST_TUNING_ROUNDS", "3")
    monkeypatch.setenv("DFLARE_TEST_TUNING_SPED", "2")
    with pytest.raises(SettingsError) as refused:
        Tuning.read()
    assert "DFLARE_TEST_TUNING_SPED" in str(refused.value)
    assert "DFLARE_TEST_TUNING_SPEED" in str(refused.value)


def test_every_setting_at_fault_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFLARE_TEST_TUNING_SPEED", "fast")
    with pytest.raises(SettingsError) as refused:
        Tuning.read()
    assert "DFLARE_TEST_TUNING_SPEED" in str(refused.value)
    assert "DFLARE_TEST_TUNING_ROUNDS" in str(refused.value), "the missing one must be named too"


def test_settings_of_longer_prefixes_belong_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFLARE_TEST_TUNING_ROUNDS", "3")
    monkeypatch.setenv("DFLARE_TEST_TUNING_DEEP_ANYTHING", "1")
    assert Tuning.read().rounds == 3


def test_settings_cannot_be_changed_once_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFLARE_TEST_TUNING_ROUNDS", "3")
    settings = Tuning.read()
    with pytest.raises(ValueError, match="frozen"):
        settings.rounds = 4


def test_the_platform_refuses_a_misspelt_key_and_leaves_services_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in {
        "POSTGRES_URL": "postgresql://127.0.0.1/x",
        "TEMPORAL_ADDRESS": "127.0.0.1:7233",
        "SECRET_KEY_FILE": "key",
        "NETWORK_ANYTHING": "1",
    }.items():
        monkeypatch.setenv(f"DFLARE_{key}", value)
    assert PlatformSettings.read().gateway_port == 8080
    monkeypatch.setenv("DFLARE_GATEWAY_PROT", "80")
    with pytest.raises(SettingsError, match="DFLARE_GATEWAY_PROT"):
        PlatformSettings.read()
