"""Debian packages, downloaded and unpacked by an ordinary user beside the start: Slurm with its
MariaDB, and VictoriaMetrics.

`python -m dflare.embedded.packages CACHE [SET]` does it once: with a state and a cache of
apt's own below `CACHE`, from the machine's own package sources (sources.list(5), apt.conf(5));
nothing of the system is changed. `CACHE/root` is what unpacked, `CACHE/status.json` says how it
stands. Clusters of kind slurm, or metrics, need it, nothing else does, so it never fails a start.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from dflare.embedded.layout import Layout

REQUIRED = (
    "munge",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "slurm-client",
    "slurmrestd",
    "slurm-wlm-basic-plugins",
    "slurm-wlm-mysql-plugin",
    "slurm-wlm-jwt-plugin",
    "mariadb-server-core",
    "mariadb-client-core",
)
SWITCH_VARIABLE = "DFLARE_SLURM_PACKAGES"
OFF = "off"
COMMAND_TIMEOUT_S = 600
NEXT_STEP = "then run `dflare down` and `dflare up`"


@dataclass(frozen=True)
class PackageSet:
    """Packages that are had together. `switch_variable` names the environment variable by which
    `off` leaves them alone, and a path is the cache to use, which data directories may share.
    `version_of` is the package whose version people are told; `needed_for` and `meanwhile` are what
    they are told where it cannot be had."""

    name: str
    required: tuple[str, ...]
    version_of: str
    switch_variable: str
    needed_for: str
    meanwhile: str


SLURM = PackageSet(
    name="Slurm",
    required=REQUIRED,
    version_of="slurmctld",
    switch_variable=SWITCH_VARIABLE,
    needed_for="Clusters of kind slurm need",
    meanwhile="bare works without",
)


VICTORIA_METRICS = PackageSet(
    name="VictoriaMetrics",
    required=("victoria-metrics",),
    version_of="victoria-metrics",
    switch_variable="DFLARE_VICTORIAMETRICS_PACKAGES",
    needed_for="Metrics need",
    meanwhile="everything else works without",
)
SETS = {wanted.name: wanted for wanted in (SLURM, VICTORIA_METRICS)}


class PackagesState(StrEnum):
    """How the packages stand."""

    READY = "ready"
    PREPARING = "preparing"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class PackagesStatus:
    """`reason` says why they are unavailable and what to do; `versions` are those unpacked, and
    `version_of` is the package whose version is told."""

    state: PackagesState
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    version_of: str = SLURM.version_of

    @property
    def line(self) -> str:
        """For people: the state, and the version or the reason."""
        about = self.reason or self.versions.get(self.version_of, "")
        if not about:
            return self.state.value
        return f"{self.state.value}: {about}" if self.reason else f"{self.state.value}, {about}"


class PackagesError(Exception):
    """The packages cannot be had; the text says why and what to do."""


@dataclass(frozen=True)
class PackageCache:
    """One folder with the unpacked packages."""

    folder: Path
    wanted: PackageSet = SLURM

    @classmethod
    def of(
        cls, layout: Layout, wanted: PackageSet = SLURM, usual: Path | None = None
    ) -> "PackageCache | None":
        """The cache that the set's variable names, else the `usual` one inside the data directory
        (Slurm's unless told); None when switched off."""
        chosen = os.environ.get(wanted.switch_variable, "")
        if chosen == OFF:
            return None
        folder = Path(chosen).expanduser().absolute() if chosen else usual or layout.packages
        return cls(folder, wanted)

    @property
    def root(self) -> Path:
        """What the packages unpacked to, complete once it exists."""
        return self.folder / "root"

    def status(self) -> PackagesStatus:
        """How it stands; `preparing` before anything was said."""
        try:
            said = json.loads((self.folder / "status.json").read_text())
            return PackagesStatus(
                PackagesState(said["state"]),
                said["reason"],
                dict(said["versions"]),
                self.wanted.version_of,
            )
        except (OSError, ValueError, KeyError):
            return PackagesStatus(PackagesState.PREPARING)

    def prepare(self) -> PackagesStatus:
        """Downloads and unpacks what is not there yet, and writes how it ended.

        Where it ended well before, nothing is done and nothing is downloaded.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            known = self.status()
            if known.state is PackagesState.READY and self.root.is_dir():
                return known
            self._say(PackagesStatus(PackagesState.PREPARING))
            try:
                status = PackagesStatus(
                    PackagesState.READY,
                    versions=self._fetch(),
                    version_of=self.wanted.version_of,
                )
            except (PackagesError, OSError) as error:
                status = PackagesStatus(PackagesState.UNAVAILABLE, str(error))
            self._say(status)
            return status

    def _fetch(self) -> dict[str, str]:
        tools = [
            name for name in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(name) is None
        ]
        if tools:
            raise PackagesError(
                f"{', '.join(tools)} is not on this machine. {self.wanted.needed_for} Debian or "
                "Ubuntu, or a folder with the packages unpacked elsewhere as "
                f"{self.wanted.switch_variable}; {self.wanted.meanwhile}."
            )
        apt = _Apt(self.folder, self.wanted)
        archives = apt.download()
        fresh = self.folder / "root.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        versions: dict[str, str] = {}
        for archive in archives:
            _call(["dpkg-deb", "--extract", str(archive), str(fresh)])
            name, version, *_ = _call(
                ["dpkg-deb", "--show", "--showformat", "${Package} ${Version}", str(archive)]
            ).split()
            versions[name] = version
        shutil.rmtree(self.root, ignore_errors=True)
        fresh.rename(self.root)
        apt.clean()
        return versions

    def _say(self, status: PackagesStatus) -> None:
        staged = self.folder / "status.json.new"
        staged.write_text(
            json.dumps(
                {
                    "state": status.state.value,
                    "reason": status.reason,
                    "versions": dict(status.versions),
                },
                indent=1,
            )
        )
        staged.replace(self.folder / "status.json")

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """Two starts that share a cache download once."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _Apt:
    """apt with state and cache of its own."""

    def __init__(self, folder: Path, wanted: PackageSet) -> None:
        self._wanted = wanted
        self._state, self._cache = folder / "apt-state", folder / "apt-cache"
        self._archives = self._cache / "archives"
        (self._state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self._archives / "partial").mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile("/var/lib/dpkg/status", self._state / "status")
        except OSError:
            (self._state / "status").touch()
        self._options = [
            f"-oDir::State={self._state}",
            f"-oDir::State::status={self._state / 'status'}",
            f"-oDir::Cache={self._cache}",
            f"-oDir::Cache::archives={self._archives}/",
            "-oDebug::NoLocking=1",
            "-oAPT::Sandbox::User=",
            "-oAcquire::Retries=1",
            "-oAcquire::http::Timeout=20",
            "-oAcquire::https::Timeout=20",
            "-oAcquire::Languages=none",
            # The system's hooks clean the system's cache, or tell desktops.
            "-oAPT::Update::Post-Invoke-Success::=/bin/true",
            "-oDPkg::Post-Invoke::=/bin/true",
        ]

    def download(self) -> list[Path]:
        """The packages and what they need beyond the machine's own. Raises `PackagesError`."""
        try:
            # One source that does not answer is no reason to give up: others may have them.
            with contextlib.suppress(PackagesError):
                self._apt("apt-get", "--quiet=2", "update")
            wanted = self._known(self._wanted.required)
            self._apt(
                "apt-get",
                "--quiet=2",
                "--yes",
                "--download-only",
                "--no-install-recommends",
                "install",
                *wanted,
            )
            # What the machine has installed is not downloaded with `install`, but a cluster takes
            # everything from one folder.
            there = {path.name.partition("_")[0] for path in self._archives.glob("*.deb")}
            if absent := [name for name in wanted if name not in there]:
                self._apt("apt-get", "--quiet=2", "download", *absent)
        except PackagesError as error:
            names = ", ".join(self._wanted.required[:3])
            raise PackagesError(
                f"{self._wanted.name}'s Debian packages could not be downloaded ({error}). See "
                f"that `apt-get update` works and that its sources have {names}, {NEXT_STEP}; "
                f"{self._wanted.meanwhile}."
            ) from error
        return sorted(self._archives.glob("*.deb"))

    def clean(self) -> None:
        """Deletes lists and archives: what was unpacked is all that is used."""
        for folder in (self._state, self._cache):
            shutil.rmtree(folder, ignore_errors=True)

    def _known(self, names: Sequence[str]) -> list[str]:
        known = self._apt("apt-cache", "pkgnames").split()
        if missing := sorted(set(names) - set(known)):
            raise PackagesError(f"no source has {', '.join(missing)}")
        return list(names)

    def _apt(self, program: str, *arguments: str) -> str:
        return _call([program, *self._options, *arguments], directory=self._archives)


def _call(argv: Sequence[str], directory: Path | None = None) -> str:
    """What a program wrote. Raises `PackagesError` with the end of its complaints."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed programs, no shell
            argv,
            check=False,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise PackagesError(f"{argv[0]} took longer than {COMMAND_TIMEOUT_S} s") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise PackagesError(" ".join(lines[-3:])[:400] or f"{argv[0]} failed")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """Prepares the cache; succeeds in any case, since nothing else of a start depends on it."""
    folder, *names = arguments
    wanted = SETS[names[0] if names else SLURM.name]
    # apt takes a relative folder for one below the machine's own.
    status = PackageCache(Path(folder).absolute(), wanted).prepare()
    sys.stderr.write(f"{wanted.name} {status.line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
