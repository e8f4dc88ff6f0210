"""Clients that nobody here wrote work against the simulated fabric, over TLS and real sockets."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import requests
from cumulus.api import Cumulus
from cumulus.base import RequestError
from starlette.types import ASGIApp

from dflare.sim.certificates import Authority
from dflare.sim.server import device_server, listen
from fabric_site import AUTH, BRIDGE, FabricSite, fabric_site


@asynccontextmanager
async def served(app: ASGIApp, addresses: list[str], ca_file: Path) -> AsyncIterator[int]:
    """``app`` over TLS at ``addresses``; gives the port, which is free on all of them.

    The sockets listen before the server runs, so a client need not wait for it.
    """
    (probe,) = listen([(addresses[0], 0)])
    port = probe.getsockname()[1]
    sockets = [probe, *listen([(address, port) for address in addresses[1:]])]
    server = device_server(app, Authority(ca_file).server_context(addresses))
    running = asyncio.create_task(server.serve(sockets=sockets))
    try:
        yield port
    finally:
        server.should_exit = True
        await running


@contextmanager
def cumulus(
    address: str, port: int, ca_file: Path, auth: tuple[str, str] = AUTH
) -> Iterator[Cumulus]:
    with requests.Session() as session:
        session.verify = str(ca_file)
        session.trust_env = False
        yield Cumulus(url=f"https://{address}:{port}", auth=auth, http_session=session)


def move_port(api: Cumulus) -> None:
    """What an operator's script does: a revision, a change, an apply, and reading it back."""
    created = api.revision.create()
    assert created == {api.revision.rev: created[api.revision.rev]}
    assert created[api.revision.rev]["state"] == "pending"
    api.root.patch(
        rev=api.revision.rev,
        data={"bridge": {"domain": {BRIDGE: {"vlan": {"196": {"vni": {"1025196": {}}}}}}}},
    )
    api.interface.patch(
        rev=api.revision.rev,
        data={"access": 196},
        target_path=f"swp1/bridge/domain/{BRIDGE}",
    )
    difference = api.root.diff(revision_a="applied", revision_b=api.revision.rev)
    assert difference["interface"]["swp1"]["type"] == "swp"
    assert api.revision.apply()["state"] == "apply"
    assert api.revision.is_applied(retries=50, sleep_time=0)
    shown = api.interface.get(f"swp1/bridge/domain/{BRIDGE}", {"rev": "operational"})
    assert shown == {"access": 196}
    assert api.bridge.get(f"domain/{BRIDGE}/vlan/196/vni") == {"1025196": {}}


async def use_two_switches(site: FabricSite, ca_file: Path) -> None:
    addresses = [switch.address for switch in site.config.switches]
    async with served(site.nvue_app, addresses, ca_file) as port:
        with cumulus(addresses[0], port, ca_file) as api:
            assert (await asyncio.to_thread(api.health))["hostname"] == "leaf0"
            await asyncio.to_thread(move_port, api)
        with cumulus(addresses[1], port, ca_file) as other:
            assert (await asyncio.to_thread(other.health))["hostname"] == "leaf1"
            shown = await asyncio.to_thread(other.interface.get, f"swp1/bridge/domain/{BRIDGE}")
            assert shown == {"access": 1}
        with (
            cumulus(addresses[0], port, ca_file, ("admin", "wrong")) as stranger,
            pytest.raises(RequestError, match="401"),
        ):
            await asyncio.to_thread(stranger.revision.create)


async def test_py_nvidia_cumulus_makes_applies_and_reads_a_revision(tmp_path: Path) -> None:
    async with fabric_site() as site:
        await use_two_switches(site, tmp_path / "ca.pem")
        assert site.fabric.port_state("leaf0", "swp1").vlans == {196}
        assert site.fabric.port_state("leaf1", "swp1").vlans == {1}


async def test_an_unreachable_device_cuts_the_connection_without_an_answer(tmp_path: Path) -> None:
    async with fabric_site() as site:
        site.faults.add("nvue_unreachable", "leaf0", count=1)
        site.faults.add("ufm_unreachable", "ufm1", count=1)
        ca_file = tmp_path / "ca.pem"
        for app, address, path in (
            (site.nvue_app, "127.31.0.1", "/nvue_v1/revision"),
            (site.fabric.ufm_app(), "127.32.0.1", "/ufmRest/resources/pkeys"),
        ):
            async with served(app, [address], ca_file) as port:
                context = ssl.create_default_context(cafile=ca_file)
                async with httpx.AsyncClient(verify=context, auth=AUTH, trust_env=False) as client:
                    url = f"https://{address}:{port}{path}"
                    with pytest.raises(httpx.TransportError):
                        await client.get(url)
                    assert (await client.get(url)).status_code == 200
