"""Promises of sealed secrets."""

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflare.kit.seal import Sealer, SealError

SEALER = Sealer(bytes(range(32)))


@given(st.text(max_size=50), st.binary(max_size=2000))
def test_what_was_sealed_opens_under_its_name(name: str, plain: bytes) -> None:
    assert SEALER.open(name, SEALER.seal(name, plain)) == plain


def test_the_plain_text_stands_nowhere_in_what_was_sealed() -> None:
    plain = b"hunter2 hunter2 hunter2"
    sealed = SEALER.seal("device/one", plain)
    assert b"hunter2" not in sealed
    assert sealed != SEALER.seal("device/one", plain), "two sealings must not look alike"


def test_another_name_does_not_open_it() -> None:
    sealed = SEALER.seal("device/one", b"secret")
    with pytest.raises(SealError, match="device/two"):
        SEALER.open("device/two", sealed)


def test_another_key_does_not_open_it() -> None:
    sealed = SEALER.seal("device/one", b"secret")
    with pytest.raises(SealError):
        Sealer(os.urandom(32)).open("device/one", sealed)


@given(st.binary(max_size=60))
def test_damaged_secrets_are_refused_and_never_opened(sealed: bytes) -> None:
    with pytest.raises(SealError):
        SEALER.open("device/one", sealed)


def test_a_key_file_of_32_bytes_in_base64_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(base64.b64encode(bytes(range(32))).decode() + "\n")
    sealed = Sealer.from_file(path).seal("name", b"secret")
    assert SEALER.open("name", sealed) == b"secret"


@pytest.mark.parametrize(
    "content", [b"", b"short", b"!!!not base64!!!", base64.b64encode(b"x" * 31), b"\xff\xfe\x00"]
)
def test_a_key_file_with_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(SealError, match="key"):
        Sealer.from_file(path)


def test_a_missing_key_file_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Sealer.from_file(tmp_path / "none")
