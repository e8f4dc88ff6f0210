"""Where the unpacked Debian packages keep what a cluster needs."""

from dataclasses import dataclass
from pathlib import Path

from dflare.sim.slurm.sandbox import ETC, HOME, PACKAGES, USER

NEEDED = (
    "usr/sbin/munged",
    "usr/sbin/slurmdbd",
    "usr/sbin/slurmrestd",
    "usr/sbin/mariadbd",
    "usr/bin/mariadb",
    "usr/bin/mariadb-install-db",
    "usr/bin/scontrol",
)
_PLUGINS = "usr/lib/*/slurm-wlm"
_JWT_PLUGIN = "auth_jwt.so"
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


class PackagesMissingError(Exception):
    """The folder does not hold the unpacked packages; the text names what is missing."""


@dataclass(frozen=True)
class Programs:
    """The unpacked packages; `plugins` is the folder of Slurm's plugins below `root`."""

    root: Path
    plugins: str

    @classmethod
    def find(cls, root: Path) -> "Programs":
        """Looks the folder over. Raises `PackagesMissingError`."""
        missing = [path for path in NEEDED if not (root / path).exists()]
        missing += [
            f"usr/sbin/{name}"
            for name in ("slurmctld", "slurmd", "slurmstepd")
            if not any((root / f"usr/sbin/{name}{end}").exists() for end in ("-wlm", ""))
        ]
        plugins = sorted(root.glob(_PLUGINS))
        if not plugins or not (plugins[0] / _JWT_PLUGIN).exists():
            missing.append(f"{_PLUGINS}/{_JWT_PLUGIN}")
        if missing:
            raise PackagesMissingError(f"{root} lacks {', '.join(missing)}")
        return cls(root, str(plugins[0].relative_to(root)))

    def environment(self) -> dict[str, str]:
        """The environment in which the programs work inside."""
        plugins = f"{PACKAGES}/{self.plugins}"
        libraries = f"{PACKAGES}/{Path(self.plugins).parent}:{plugins}"
        return {
            "PATH": f"/run/bin:{PACKAGES}/usr/bin:{PACKAGES}/usr/sbin:{_SYSTEM_PATH}",
            "LD_LIBRARY_PATH": libraries,
            "SLURM_CONF": f"{ETC}/slurm.conf",
            "HOME": HOME,
            "USER": USER,
            "LOGNAME": USER,
            "LANG": "C.UTF-8",
        }
