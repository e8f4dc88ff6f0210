"""Where each thing lies inside a data directory."""

import os
from dataclasses import dataclass
from pathlib import Path

DATA_DIR_VARIABLE = "DFLARE_DATA_DIR"
DEFAULT_DATA_DIR = ".dflare"


@dataclass(frozen=True)
class Layout:
    """The paths of one data directory; nothing is created by naming them."""

    root: Path

    @classmethod
    def of(cls, data_dir: Path | None) -> "Layout":
        """The given directory, else `DFLARE_DATA_DIR`, else `.dflare` in the working directory."""
        chosen = data_dir or Path(os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR)
        return cls(chosen.expanduser().resolve())

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def temporal(self) -> Path:
        return self.root / "temporal"

    @property
    def valkey(self) -> Path:
        return self.root / "valkey"

    @property
    def seaweedfs(self) -> Path:
        return self.root / "seaweedfs"

    @property
    def victoriametrics(self) -> Path:
        """The series, and the program where this machine has none."""
        return self.root / "victoriametrics"

    @property
    def simulator(self) -> Path:
        return self.root / "sim"

    @property
    def packages(self) -> Path:
        """Slurm's Debian packages, unless a folder elsewhere was chosen for them."""
        return self.root / "packages"

    @property
    def clusters(self) -> Path:
        """What simulated hosts run of tenants' Slurm clusters."""
        return self.root / "clusters"

    @property
    def volumes(self) -> Path:
        """Where the driver of local volumes keeps them."""
        return self.root / "volumes"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def state_file(self) -> Path:
        return self.run / "state.json"

    @property
    def ports_file(self) -> Path:
        return self.run / "ports.json"

    @property
    def options_file(self) -> Path:
        return self.run / "options.json"

    @property
    def lock_file(self) -> Path:
        return self.run / "supervisor.lock"

    @property
    def master_key_file(self) -> Path:
        return self.secrets / "master.key"

    @property
    def postgres_password_file(self) -> Path:
        return self.secrets / "postgres-password"

    @property
    def valkey_password_file(self) -> Path:
        return self.secrets / "valkey-password"

    @property
    def s3_secret_key_file(self) -> Path:
        return self.secrets / "s3-secret-key"

    @property
    def seaweedfs_keys(self) -> Path:
        """What the parts of SeaweedFS know each other by."""
        return self.secrets / "seaweedfs"

    @property
    def victoriametrics_password_file(self) -> Path:
        return self.secrets / "victoriametrics-password"

    @property
    def simulator_log(self) -> Path:
        return self.simulator / "truth.jsonl"

    @property
    def device_ca_file(self) -> Path:
        """Written by the simulator beside its log."""
        return self.simulator / "ca.pem"

    @property
    def site_file(self) -> Path:
        return self.root / "site.yaml"

    @property
    def simulator_file(self) -> Path:
        return self.root / "sim.yaml"

    def log_file(self, component: str) -> Path:
        return self.logs / f"{component}.log"

    def create(self) -> None:
        """Makes the directories; `run` (it has URLs with passwords) and `secrets` are closed."""
        self.root.mkdir(parents=True, exist_ok=True)
        for directory in (self.postgres, self.temporal, self.simulator, self.logs):
            directory.mkdir(exist_ok=True)
        for directory in (self.run, self.secrets):
            directory.mkdir(mode=0o700, exist_ok=True)
