"""Starts the whole platform for tests: real stores, real processes, the simulated data center.

async with running_platform(PlatformWish(nodes=16)) as platform:
    await platform.apply_site()
    red = await platform.tenant("red", quotas={"h100-8": 8})
    operation = await platform.order(red, "lab", "h100-8", 4)

Nothing is reached but what people reach: HTTP, the command line and the simulator's control
interface. ``database`` is for tests that compare final states or hold a lock on purpose.
"""

import asyncio
import base64
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from dflare.cli.oauth import discover, login_by_password
from dflare.embedded import control
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.state import read_state
from dflare.kit.ids import new_id
from dflare.site.document import SiteDocument
from sim_control import SimControl
from site_files import PlatformWish

FINAL = frozenset({"succeeded", "failed", "cancelled", "needs_operator"})
KILL_SETTINGS = {"DFLARE_HEARTBEAT_S": "2", "DFLARE_STICKY_QUEUE_S": "0.5"}
POLL_S = 0.1


@dataclass(frozen=True)
class Tenant:
    """A project with a user of its own; ``http`` speaks for that user."""

    name: str
    organization_id: str
    project_id: str
    token: str
    public_key: str
    http: httpx.AsyncClient


@dataclass(frozen=True)
class CliResult:
    """What a command of the program printed and how it ended."""

    exit_code: int
    out: str
    err: str


class PlatformHandle:
    """A running platform and its operator's client."""

    def __init__(self, layout: Layout, document: SiteDocument, urls: Mapping[str, str]) -> None:
        self.layout = layout
        self.document = document
        self.url = urls["api"]
        self.postgres_url = urls["postgres"]
        self.sim = SimControl(urls["simulator"])
        self.operator = httpx.AsyncClient(base_url=self.url, timeout=60)
        self._clients = [self.operator, self.sim.http]

    async def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            await client.aclose()

    # --- identities ----------------------------------------------------------------------------

    async def log_in(self) -> None:
        """Give ``operator`` the rights of the first operator, by the login page."""
        password = (self.layout.secrets / "operator-password").read_text().strip()
        token = await asyncio.to_thread(token_of, self.url, "operator", password)
        self.operator.headers["Authorization"] = f"Bearer {token}"

    async def tenant(self, name: str, quotas: Mapping[str, int]) -> Tenant:
        """Make an organization, a project with limits, a user who may order in it, and its key."""
        organization = await self.made("/v1/organizations", name=name)
        project = await self.made(
            "/v1/projects", organization=organization["id"], name=f"{name}-lab"
        )
        user = await self.made(
            "/v1/users",
            name=f"{name}-user",
            organization=organization["id"],
            password=f"a long password of {name}",
        )
        await self.made(
            "/v1/role-bindings", subject=user["id"], role="member", project=project["id"]
        )
        for node_type, nodes in quotas.items():
            answer = await self.operator.put(
                f"/v1/projects/{project['id']}/quotas/{node_type}", json={"nodes": nodes}
            )
            ok(answer)
        token = await asyncio.to_thread(
            token_of, self.url, f"{name}-user@{name}", f"a long password of {name}"
        )
        public_key = f"ssh-ed25519 {_key_material(name)} {name}"
        http = httpx.AsyncClient(
            base_url=self.url, timeout=60, headers={"Authorization": f"Bearer {token}"}
        )
        self._clients.append(http)
        tenant = Tenant(name, organization["id"], project["id"], token, public_key, http)
        ok(
            await http.post(
                f"/v1/projects/{tenant.project_id}/ssh-keys",
                json={"name": "key", "public_key": public_key},
            )
        )
        return tenant

    async def made(self, path: str, **body: Any) -> dict[str, Any]:
        """POST as operator; returns what was made."""
        return ok(await self.operator.post(path, json=body))

    async def cli(
        self, *arguments: str, token: str | None = None, project: str = "", timeout_s: float = 300
    ) -> CliResult:
        """Run the program ``dflare`` as the operator, or with another token."""
        bearer = token or self.operator.headers["Authorization"].removeprefix("Bearer ")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "dflare.cli.main",
            *arguments,
            cwd=self.layout.root,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "DFLARE_CLI_URL": self.url,
                "DFLARE_CLI_TOKEN": bearer,
                "DFLARE_CLI_CONFIG": str(self.layout.root / "cli.json"),
                **({"DFLARE_CLI_PROJECT": project} if project else {}),
            },
        )
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
        return CliResult(process.returncode or 0, out.decode(), err.decode())

    # --- the site ------------------------------------------------------------------------------

    async def apply_site(self, deadline_s: float = 180) -> None:
        """Apply ``site.yaml`` by the program, and wait until every node is enrolled."""
        done = await self.cli("site", "apply", str(self.layout.site_file), timeout_s=deadline_s)
        assert done.exit_code == 0, done.err or done.out
        await self.until_available(len(self.document.nodes), deadline_s)

    async def node_states(self) -> dict[str, int]:
        """How many nodes of the site are in which state."""
        sites = ok(await self.operator.get("/v1/sites"))["items"]
        return next(site["nodes"] for site in sites if site["name"] == self.document.name)

    async def nodes(self) -> list[dict[str, Any]]:
        """Every node, as the operator sees it."""
        return await self.all_pages("/v1/nodes")

    async def all_pages(
        self, path: str, http: httpx.AsyncClient | None = None, **query: str
    ) -> list[dict[str, Any]]:
        """Every item of a list, as the operator or another caller sees it."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            more = {"cursor": cursor} if cursor else {}
            parameters = {"limit": "500", **query, **more}
            page = ok(await (http or self.operator).get(path, params=parameters))
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items

    async def until_available(self, count: int, deadline_s: float = 120) -> None:
        """Wait until ``count`` nodes are available."""
        states: dict[str, int] = {}

        async def all_there() -> bool:
            nonlocal states
            states = await self.node_states()
            return states.get("available") == count

        try:
            await self.until(all_there, deadline_s)
        except TimeoutError:
            raise AssertionError(f"not {count} nodes are available but {states}") from None

    async def until(self, true: Callable[[], Awaitable[bool]], deadline_s: float = 30) -> None:
        """Ask until the answer is yes.

        Raises:
            TimeoutError: it never was.
        """
        async with asyncio.timeout(deadline_s):
            while True:
                if await true():
                    return
                await asyncio.sleep(POLL_S)

    async def pools(self) -> dict[str, dict[str, int]]:
        """How many identifiers of each kind are in which state."""
        answer = ok(await self.operator.get(f"/v1/sites/{self.document.name}/pools"))
        return {pool.pop("kind"): pool for pool in answer["pools"]}

    # --- orders --------------------------------------------------------------------------------

    async def order(
        self,
        tenant: Tenant,
        name: str,
        node_type: str,
        count: int,
        *,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Order a cluster; repeats with the same idempotency key until there is an answer."""
        body = {
            "name": name,
            "ssh_keys": ["key"],
            "pools": [{"node_type": node_type, "count": count}],
        }
        path = f"/v1/projects/{tenant.project_id}/clusters"
        return await self.repeated(tenant.http, "POST", path, body, key)

    async def release(self, tenant: Tenant, name: str, *, key: str | None = None) -> dict[str, Any]:
        """Ask for the release of a cluster; repeats like ``order``."""
        path = f"/v1/projects/{tenant.project_id}/clusters/{name}"
        return await self.repeated(tenant.http, "DELETE", path, None, key)

    async def repeated(
        self,
        http: httpx.AsyncClient,
        method: str,
        path: str,
        body: Any,
        key: str | None = None,
        deadline_s: float = 60,
    ) -> dict[str, Any]:
        """One request, repeated with one idempotency key while nobody answers it."""
        headers = {"Idempotency-Key": key or new_id("idem")}
        async with asyncio.timeout(deadline_s):
            while True:
                try:
                    answer = await http.request(method, path, json=body, headers=headers)
                except httpx.TransportError:
                    await asyncio.sleep(POLL_S)
                    continue
                if answer.status_code < 500:
                    return ok(answer)
                await asyncio.sleep(POLL_S)

    async def operation(self, operation_id: str) -> dict[str, Any] | None:
        """An operation; ``None`` while nobody answers or the list does not have it yet."""
        try:
            answer = await self.operator.get(f"/v1/operations/{operation_id}")
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None

    async def wait(
        self, operation: Mapping[str, Any], *, state: str = "succeeded", deadline_s: float = 120
    ) -> dict[str, Any]:
        """Wait for the end of an operation, which must be ``state``."""
        seen: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(deadline_s):
                while seen is None or seen["state"] not in FINAL:
                    await asyncio.sleep(POLL_S / 2)
                    seen = await self.operation(operation["id"]) or seen
        except TimeoutError:
            raise AssertionError(f"no end within {deadline_s} s: {brief(seen)}") from None
        assert seen["state"] == state, brief(seen)
        return seen

    async def cluster(self, tenant: Tenant, name: str) -> dict[str, Any]:
        """A cluster as its tenant sees it."""
        path = f"/v1/projects/{tenant.project_id}/clusters/{name}"
        return await self.repeated(tenant.http, "GET", path, None)

    async def usage(self, tenant: Tenant, month: str) -> list[dict[str, Any]]:
        """The ledger of a month."""
        path = f"/v1/projects/{tenant.project_id}/usage"
        return await self.all_pages(path, tenant.http, month=month)

    async def invoice(self, tenant: Tenant, month: str) -> dict[str, Any]:
        """The draft invoice of a month."""
        return ok(await tenant.http.get(f"/v1/projects/{tenant.project_id}/invoices/{month}"))

    async def audit_usage(self, deadline_s: float = 120) -> dict[str, Any]:
        """Ask for an audit of the ledger and wait for its end."""
        audit = ok(await self.operator.post("/v1/audits/usage:run"))

        async def ended() -> bool:
            nonlocal audit
            audit = ok(await self.operator.get(f"/v1/audits/usage/{audit['id']}"))
            return audit["state"] in {"clean", "found"}

        await self.until(ended, deadline_s)
        return audit

    # --- processes -----------------------------------------------------------------------------

    def kill(self, component: str) -> int:
        """SIGKILL a process of the platform or a store; returns its pid."""
        state = read_state(self.layout.state_file)
        assert state is not None
        found = next(item for item in state.components if item.name == component)
        assert found.process is not None, f"{component} does not run: {found}"
        found.process.send(signal.SIGKILL)
        return found.process.pid

    async def until_healthy(self, deadline_s: float = 60, *, other_than: int | None = None) -> None:
        """Wait until every component is healthy and none is the process ``other_than``."""

        async def healthy() -> bool:
            return self._healthy(other_than)

        await self.until(healthy, deadline_s)

    def _healthy(self, other_than: int | None) -> bool:
        state = read_state(self.layout.state_file)
        return (
            state is not None
            and state.is_ready
            and all(process.pid != other_than for process in state.processes)
        )

    @contextmanager
    def supervisor_paused(self) -> Iterator[None]:
        """Within, nothing that ends is started again."""
        supervisor = control.running_supervisor(self.layout)
        assert supervisor is not None
        supervisor.send(signal.SIGSTOP)
        try:
            yield
        finally:
            supervisor.send(signal.SIGCONT)

    @asynccontextmanager
    async def database(self) -> AsyncIterator["asyncpg.Connection[Any]"]:
        """A connection of its own to the platform's database."""
        connection = await asyncpg.connect(self.postgres_url, timeout=10)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)


_FOR_ORDERS = (
    *("postgres", "temporal", "valkey", "sim"),
    *("migrate", "gateway", "worker", "site-worker", "relay"),
)


@asynccontextmanager
async def running_platform(wish: PlatformWish) -> AsyncIterator[PlatformHandle]:
    """Start everything in a fresh directory; stop and remove it all at the end."""
    root = _fresh_directory()
    layout = Layout.of(root / "data")
    try:
        document = await asyncio.to_thread(wish.write, layout)
        with _environment(wish.environment):
            # The component is there where packages are.
            slurm = ("slurm-packages",) if "DFLARE_SLURM_PACKAGES" in wish.environment else ()
            only = () if wish.every_store else (*_FOR_ORDERS, *slurm)
            options = UpOptions(nodes=wish.nodes, only=only)
            started = await asyncio.to_thread(control.up, layout, options)
        handle = PlatformHandle(layout, document, started.state.urls)
        try:
            await handle.log_in()
            yield handle
        finally:
            await handle.close()
    finally:
        await asyncio.to_thread(control.down, layout)
        await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)


def ok(answer: httpx.Response) -> Any:
    """The body of a successful answer."""
    assert answer.is_success, f"{answer.request.method} {answer.request.url}: {answer.text[:2000]}"
    return answer.json() if answer.content else None


def brief(operation: Mapping[str, Any] | None) -> str:
    """An operation for the message of a failed test."""
    if operation is None:
        return "it was never seen"
    lines = [f"{operation['id']} {operation['state']} {operation['reason']}"]
    lines += [
        f"  {step['name']} {step['state']} {step['done']}/{step['total']} {step['message']}"
        for step in operation["steps"]
    ]
    return "\n".join(lines)


def running_steps(operation: Mapping[str, Any]) -> Sequence[str]:
    """Names of the steps that run now."""
    return [step["name"] for step in operation["steps"] if step["state"] == "running"]


def _fresh_directory() -> Path:
    """A directory outside pytest's own, which the database's user could not enter."""
    root = Path(tempfile.mkdtemp(prefix="dflare-e2e-"))
    root.chmod(0o755)
    return root


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Processes that start within inherit these variables."""
    before = dict(os.environ)
    os.environ.pop("DFLARE_DATA_DIR", None)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def token_of(url: str, username: str, password: str) -> str:
    """A token of a user, by the login page; it lives for a quarter of an hour."""
    with httpx.Client(base_url=url, timeout=30) as http:
        return login_by_password(http, discover(http, url), username, password).access_token


def _key_material(name: str) -> str:
    """The base64 part of an Ed25519 public key (RFC 8709) that belongs to nobody."""
    parts = (b"ssh-ed25519", hashlib.sha256(name.encode()).digest())
    wire = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return base64.b64encode(wire).decode()
