"""Ports are kept, moved with a word about it, or refused when somebody demanded them."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dflare.embedded.ports import LOOPBACK, PortBook, PortTakenError, free_port, port_is_free


@pytest.fixture
def taken_port() -> Iterator[int]:
    port = free_port()
    with socket.create_server((LOOPBACK, port)):
        yield port


def test_a_port_is_kept_over_starts(tmp_path: Path) -> None:
    first = PortBook(tmp_path / "ports.json")
    port = first.choose("postgres")
    first.save()
    assert PortBook(tmp_path / "ports.json").choose("postgres") == port


def test_two_names_never_share_a_port(tmp_path: Path) -> None:
    book = PortBook(tmp_path / "ports.json")
    ports = {book.choose(f"name-{number}") for number in range(50)}
    assert len(ports) == 50


def test_a_kept_port_that_was_taken_moves_and_names_the_holder(
    tmp_path: Path, taken_port: int
) -> None:
    (tmp_path / "ports.json").write_text(f'{{"gateway": {taken_port}}}')
    book = PortBook(tmp_path / "ports.json")
    chosen = book.choose("gateway")
    assert chosen != taken_port
    assert port_is_free(chosen)
    (note,) = book.notes
    assert f"Port {taken_port}" in note
    assert f"pid {os.getpid()}" in note


def test_a_demanded_port_that_is_taken_is_refused_with_the_next_step(
    tmp_path: Path, taken_port: int
) -> None:
    book = PortBook(tmp_path / "ports.json")
    with pytest.raises(
        PortTakenError, match=rf"Port {taken_port} .*\(pid {os.getpid()}\). Stop it"
    ):
        book.choose("gateway", demanded=taken_port)


def test_free_ports_lie_below_the_range_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port() < lowest for _ in range(20))
