"""What the demonstration acts through: the API as operator and as tenants, and the simulator."""

import base64
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import httpx

from dflare.cli import oauth
from dflare.cli.client import Api, new_http, segment
from dflare.cli.config import ConfigFile, Connection, Context
from dflare.cli.errors import ApiProblem, CliError, Json, UsageError
from dflare.embedded.layout import Layout
from dflare.embedded.state import read_state

OPERATOR = "operator"
TIMEOUT_S = 60.0
EMPTY_WITHIN_S, EMPTY_POLL_S = 30.0, 0.3


class PasswordApi(Api):
    """The API for somebody who logs in by a password of this run, and again when the token ends.
    No file of contexts is read or changed."""

    def __init__(self, url: str, username: str, password: str) -> None:
        super().__init__(ConfigFile.of(os.environ), Connection("", Context(url=url)))
        self._url = url
        self._username = username
        self._password = password
        self.renew()

    def renew(self) -> bool:
        context = Context(url=self._url)
        with new_http(context) as http:
            endpoints = oauth.discover(http, self._url)
            tokens = oauth.login_by_password(http, endpoints, self._username, self._password)
        self.context = Context(
            url=self._url, access_token=tokens.access_token, expires_at=tokens.expires_at
        )
        return True


class Simulator:
    """The simulator's control interface: ground truth and faults. The platform never uses it.

    Raises:
        CliError: it does not answer, or refuses.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)

    def close(self) -> None:
        """End the connection."""
        self._http.close()

    def reachability(self) -> Json:
        """Who reaches whom, from the programmed state and the cables."""
        return self._ask("GET", "/truth/reachability")

    def hosts(self) -> dict[str, Json]:
        """The truth of every host by name."""
        return {str(host["name"]): host for host in self._ask("GET", "/truth/hosts")["hosts"]}

    def boots(self) -> list[Json]:
        """Entries of the log for systems that came up."""
        entries = self._ask("GET", "/truth/log", {"kind": "system_started"})["entries"]
        return cast("list[Json]", entries)

    def find(self, text: str) -> list[dict[str, str]]:
        """Every place of the site where ``text`` stands."""
        return cast(
            "list[dict[str, str]]", self._ask("GET", "/truth/find", {"text": text})["places"]
        )

    def mark(self, text: str) -> str:
        """Write a marker into the log; returns its time."""
        return str(self._ask("POST", "/truth/marker", body={"text": text})["at_wall"])

    def secret(self, host: str, text: str) -> None:
        """Do what a tenant does: put ``text`` on all disks and into memory."""
        self._ask("POST", f"/hosts/{segment(host)}/secret", body={"text": text})

    def fault(self, kind: str, target: str) -> int:
        """Put a fault in force; returns its number."""
        return int(self._ask("POST", "/faults", body={"kind": kind, "target": target})["id"])

    def clear(self, fault: int) -> None:
        """Withdraw a fault."""
        self._ask("DELETE", "/faults", {"id": str(fault)})

    def _ask(
        self, method: str, path: str, query: dict[str, str] | None = None, body: Any = None
    ) -> Json:
        try:
            answer = self._http.request(method, path, params=query, json=body)
        except httpx.TransportError as error:
            raise CliError(
                f"the simulated data center does not answer: {error or type(error).__name__}",
                next_step="See `dflare status` and `dflare logs sim`.",
            ) from error
        if not answer.is_success:
            raise CliError(
                f"the simulated data center refused {method} {path}: {answer.text[:300]}",
                next_step="See `dflare logs sim`.",
            )
        return cast("Json", answer.json())


@dataclass
class Tenant:
    """An organization with one project and one user, made for this run."""

    name: str
    organization_id: str
    project_id: str
    user_id: str
    api: Api
    public_key: str

    def path(self, *parts: str) -> str:
        """A path below the tenant's project."""
        return "/".join((f"/projects/{segment(self.project_id)}", *map(segment, parts)))


@dataclass
class World:
    """The platform on this machine. ``tenants`` are those that this run has made."""

    layout: Layout
    url: str
    operator: Api
    simulator: Simulator
    tenants: list[Tenant] = field(default_factory=list["Tenant"])

    @classmethod
    def open(cls, layout: Layout) -> "World":
        """Log in at the platform that runs in a data directory.

        Raises:
            CliError: none runs there, it has no simulated data center, or nobody may log in.
        """
        from dflare.embedded import control

        state = read_state(layout.state_file)
        if state is None or control.running_supervisor(layout) is None:
            raise UsageError(
                f"no platform runs in {layout.root}",
                next_step="Start one by `dflare up` (or `make up`), then repeat.",
            )
        if not {"api", "simulator"} <= set(state.urls):
            raise UsageError(
                "the demonstration needs the API and the simulated data center, and this platform "
                f"has only: {', '.join(state.urls) or 'nothing'}",
                next_step="Start a whole one by `dflare up --data-dir DIRECTORY`.",
            )
        url = state.urls["api"]
        password = _operator_password(layout.secrets / "operator-password")
        return cls(
            layout, url, PasswordApi(url, OPERATOR, password), Simulator(state.urls["simulator"])
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for api in (self.operator, *(tenant.api for tenant in self.tenants)):
            api.http.close()
        self.simulator.close()

    def new_tenant(self, name: str, node_type: str, nodes: int) -> Tenant:
        """Make a tenant with room for ``nodes`` of a type."""
        operator = self.operator
        organization = operator.change("POST", "/organizations", {"name": name})
        project = operator.change(
            "POST", "/projects", {"organization": organization["id"], "name": "demo"}
        )
        password = secrets.token_urlsafe(24)
        user = operator.change(
            "POST",
            "/users",
            {"name": "ada", "organization": organization["id"], "password": password},
        )
        operator.change(
            "POST",
            "/role-bindings",
            {"subject": user["id"], "role": "member", "project": project["id"]},
        )
        tenant = Tenant(
            name=name,
            organization_id=str(organization["id"]),
            project_id=str(project["id"]),
            user_id=str(user["id"]),
            api=PasswordApi(self.url, f"ada@{name}", password),
            public_key=f"ssh-ed25519 {_key_of_nobody()} {name}",
        )
        self.tenants.append(tenant)
        operator.change("PUT", tenant.path("quotas", node_type), {"nodes": nodes})
        tenant.api.change(
            "POST", tenant.path("ssh-keys"), {"name": "laptop", "public_key": tenant.public_key}
        )
        return tenant

    def remove_tenant(self, tenant: Tenant) -> None:
        """Remove what ``new_tenant`` made; its usage and bills stay in the ledger.

        Raises:
            ApiProblem: it still has something.
        """
        deadline = time.monotonic() + EMPTY_WITHIN_S
        while True:
            try:
                self.operator.change("DELETE", tenant.path())
                break
            except ApiProblem as problem:
                # That the last of it is gone travels as an event, so it may be heard of late.
                if problem.status != 409 or time.monotonic() > deadline:
                    raise
                time.sleep(EMPTY_POLL_S)
        self.operator.change("DELETE", f"/users/{segment(tenant.user_id)}")
        self.operator.change("DELETE", f"/organizations/{segment(tenant.organization_id)}")
        self.tenants.remove(tenant)
        tenant.api.http.close()


def _operator_password(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CliError(
            f"{file} cannot be read: {error.strerror}",
            next_step="Run this as the user who runs the platform.",
        ) from error


def _key_of_nobody() -> str:
    """The base64 part of an Ed25519 public key (RFC 8709) whose private half nobody has."""
    parts = (b"ssh-ed25519", secrets.token_bytes(32))
    wire = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return base64.b64encode(wire).decode()
