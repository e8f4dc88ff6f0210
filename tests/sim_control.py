"""A client of the simulator's control interface: ground truth and faults."""

from typing import Any

import httpx


class SimControl:
    """The simulator's control interface: ground truth and faults."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=60)

    async def reachability(self) -> dict[str, Any]:
        """Who reaches whom, from the programmed state and the cables."""
        return await self._get("/truth/reachability")

    async def hosts(self) -> dict[str, dict[str, Any]]:
        """The truth of every host by name."""
        return {host["name"]: host for host in (await self._get("/truth/hosts"))["hosts"]}

    async def find(self, text: str) -> list[dict[str, str]]:
        """Every place where ``text`` still stands."""
        return (await self._get("/truth/find", text=text))["places"]

    async def log(self, **query: str | int) -> list[dict[str, Any]]:
        """Entries of the ground-truth log."""
        return (await self._get("/truth/log", **query))["entries"]

    async def mark(self, text: str) -> dict[str, Any]:
        """Write a marker into the log; returns the entry."""
        return await self._post("/truth/marker", text=text)

    async def secret(self, host: str, text: str) -> list[dict[str, str]]:
        """What a tenant does: put ``text`` on all disks and into memory; returns the places."""
        return (await self._post(f"/hosts/{host}/secret", text=text))["places"]

    async def fault(self, kind: str, target: str = "*", **more: Any) -> dict[str, Any]:
        """Put a fault in force."""
        return await self._post("/faults", kind=kind, target=target, **more)

    async def speed(self, speed: float) -> None:
        """Run the site's clock at ``speed`` from now on."""
        await self._post("/clock", speed=speed)

    async def clear_faults(self) -> None:
        """Withdraw every fault."""
        (await self.http.delete("/faults")).raise_for_status()

    async def _get(self, path: str, **query: str | int) -> dict[str, Any]:
        answer = await self.http.get(path, params=query)
        answer.raise_for_status()
        return answer.json()

    async def _post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = await self.http.post(path, json=body)
        answer.raise_for_status()
        return answer.json()
