"""The embedded VictoriaMetrics, where this machine has it or Debian's package can be unpacked."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from dflare.embedded.component import AbsentError, http_client
from dflare.embedded.layout import Layout
from dflare.embedded.os_user import launch_prefix
from dflare.embedded.packages import VICTORIA_METRICS, PackageCache, PackagesState
from dflare.embedded.ports import LOOPBACK

USER = "dflare"
PROGRAM = "victoria-metrics"
RETENTION = "90d"
MEMORY = "256MiB"
FLAG_PREFIX = "DFLARE_VICTORIAMETRICS_FLAG_"


@dataclass(frozen=True)
class EmbeddedVictoria:
    """One server that keeps its series in `directory`, reached over loopback with a password.

    `packages` is where the program lies if the machine itself has none."""

    directory: Path
    port: int
    password: str
    packages: PackageCache

    @property
    def url(self) -> str:
        return f"http://{USER}:{self.password}@{LOOPBACK}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Flags that the command line would show to everybody, and the libraries that came with
        the package."""
        # Dots of a flag's name are underscores here; pages about the server take a key, not the
        # login.
        secret_flags = ("httpAuth_password", "metricsAuthKey", "flagsAuthKey", "pprofAuthKey")
        libraries = [str(folder) for folder in self.packages.root.glob("usr/lib/*-linux-gnu*")]
        return {
            **{f"{FLAG_PREFIX}{flag}": self.password for flag in secret_flags},
            **({"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {}),
        }

    def prepare(self) -> None:
        """Makes the directory. Raises `AbsentError` where there is no program."""
        if not program(self.packages).exists():
            raise AbsentError(self.packages.status().line)
        self.directory.mkdir(parents=True, exist_ok=True)

    def argv(self) -> list[str]:
        """The server's command line. Series end after 90 days."""
        return [
            *launch_prefix("TERM"),
            str(program(self.packages)),
            "-envflag.enable",
            f"-envflag.prefix={FLAG_PREFIX}",
            f"-httpAuth.username={USER}",
            f"-httpListenAddr={LOOPBACK}:{self.port}",
            f"-storageDataPath={self.directory}",
            f"-retentionPeriod={RETENTION}",
            f"-memory.allowedBytes={MEMORY}",
            "-storage.minFreeDiskSpaceBytes=100MiB",
            "-loggerLevel=WARN",
        ]

    async def is_ready(self) -> bool:
        """Whether a query is answered within two seconds."""
        return await answers(self.url)


def package_cache(layout: Layout) -> PackageCache | None:
    """Where the package is unpacked; none where it is switched off."""
    return PackageCache.of(layout, VICTORIA_METRICS, layout.victoriametrics / "package")


def program(packages: PackageCache) -> Path:
    """The machine's own program, or else where the package's will be."""
    own = shutil.which(PROGRAM)
    return Path(own) if own else packages.root / "usr" / "bin" / PROGRAM


def must_fetch(packages: PackageCache) -> bool:
    """Whether the program is to be had yet."""
    ready = packages.status().state is PackagesState.READY
    return not (program(packages).exists() and (ready or shutil.which(PROGRAM) is not None))


async def answers(url: str) -> bool:
    """Whether the server at `url` answers a query within two seconds and takes the password."""
    parts = urlsplit(url)
    login = (parts.username or "", parts.password or "") if parts.username else None
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    try:
        async with http_client(plain) as client:
            asked = await client.get(f"{plain}/api/v1/query", params={"query": "1"}, auth=login)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return asked.is_success
