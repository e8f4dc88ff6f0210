"""One BMC as its handlers see it, and the form of a handler's answer."""

import hmac
import secrets
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from urllib.parse import quote

import orjson

from dflare.sim.config import Credentials
from dflare.sim.host import Host
from dflare.sim.redfish.messages import RedfishError, terse_body
from dflare.sim.redfish.schemas import ROOT, odata_type
from dflare.sim.redfish.vendor import ActionAnswer, Vendor

Document = dict[str, object]

OK: dict[str, object] = {"State": "Enabled", "Health": "OK"}
"""A Status object (Resource.Status) of a healthy part."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A handler's answer: status, JSON body or none, further header fields."""

    status: int
    body: Document | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])


NO_CONTENT = Answer(204)


@dataclass(frozen=True, slots=True)
class Session:
    """A login: ``token`` is what X-Auth-Token must carry."""

    id: str
    token: str
    user: str
    created_at: datetime


class Bmc:
    """The management controller of one host."""

    def __init__(self, host: Host, vendor: Vendor, credentials: Credentials) -> None:
        self.host = host
        self.vendor = vendor
        self.sessions: dict[str, Session] = {}
        self.username = credentials.username
        self._password = ""
        self._basic = ""
        self.set_password(credentials.password)
        self._session_number = 0

    @property
    def system_path(self) -> str:
        """The path of the ComputerSystem."""
        return f"{ROOT}/Systems/{self.vendor.system_id}"

    @property
    def manager_path(self) -> str:
        """The path of the Manager."""
        return f"{ROOT}/Managers/{self.vendor.manager_id}"

    @property
    def chassis_path(self) -> str:
        """The path of the Chassis."""
        return f"{ROOT}/Chassis/{self.vendor.chassis_id}"

    @property
    def bios_path(self) -> str:
        """The path of the Bios resource."""
        return f"{self.system_path}/{self.vendor.bios.bios}"

    @property
    def done(self) -> Answer:
        """What an action that succeeded is answered with."""
        if self.vendor.action_answer is ActionAnswer.EXTENDED:
            return Answer(200, terse_body("Success"))
        if self.vendor.action_answer is ActionAnswer.SUCCESS:
            text = {"code": "Base.v1_4_0.Success", "Message": "Successfully Completed Request."}
            return Answer(200, {"Success": text})
        return NO_CONTENT

    def set_password(self, password: str) -> None:
        """Accept ``password`` from now on."""
        self._password = password
        pair = f"{self.username}:{password}".encode()
        self._basic = f"Basic {b64encode(pair).decode()}"

    def login(self, user: object, password: object) -> Session:
        """Open a session.

        Raises:
            RedfishError: 401 for wrong credentials, 503 when there are too many sessions.
        """
        right = user == self.username and hmac.compare_digest(
            str(password).encode(), self._password.encode()
        )
        if not right:
            raise RedfishError(401, "NoValidSession")
        if len(self.sessions) >= self.vendor.session_limit:
            raise RedfishError(503, "SessionLimitExceeded", headers={"Retry-After": "30"})
        self._session_number += 1
        session = Session(
            str(self._session_number), secrets.token_hex(16), self.username, datetime.now(UTC)
        )
        self.sessions[session.token] = session
        return session

    def authenticated(self, authorization: str | None, token: str | None) -> bool:
        """Whether a request carries the right Basic credentials or a session's token."""
        if token is not None:
            return token in self.sessions
        if authorization is None:
            return False
        return hmac.compare_digest(authorization.encode(), self._basic.encode())


def link(path: str) -> Document:
    """A reference to a resource (DSP0266, 9.5)."""
    return {"@odata.id": path}


def links(base: str, names: list[str]) -> list[Document]:
    """References to the members ``names`` under ``base``."""
    return [link(f"{base}/{quote(name)}") for name in names]


def resource(path: str, schema: str, name: str, **properties: object) -> Document:
    """A resource with its required properties; ``Id`` is the last part of its path unless given."""
    return {
        "@odata.id": path,
        "@odata.type": odata_type(schema),
        "Id": path.rsplit("/", 1)[1],
        "Name": name,
        **properties,
    }


def collection(path: str, schema: str, name: str, members: list[Document]) -> Document:
    """A resource collection (DSP0266, 9.8)."""
    return {
        "@odata.id": path,
        "@odata.type": odata_type(schema),
        "Name": name,
        "Members@odata.count": len(members),
        "Members": members,
    }


def stamp(when: datetime) -> str:
    """A time as Redfish writes it (DSP0266, 9.2.2)."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def etag_of(document: Document) -> str:
    """A strong ETag of what a client could change or wait for: not of the clock's reading."""
    if "DateTime" in document:
        document = {name: value for name, value in document.items() if name != "DateTime"}
    return f'"{blake2b(orjson.dumps(document), digest_size=8).hexdigest()}"'
