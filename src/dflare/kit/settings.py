"""One settings class a service, read from the environment; keys that nobody knows are refused."""

import os
from typing import ClassVar, Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """The environment holds a setting that is unknown, missing or malformed."""


class Settings(BaseSettings):
    """Base of all settings classes; a subclass sets ``prefix`` such as ``DFLARE_NETWORK_``."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)
    prefix: ClassVar[str]
    foreign_prefixes: ClassVar[tuple[str, ...]] = ()
    """Longer prefixes below ``prefix`` that belong to other settings classes."""

    @classmethod
    def read(cls) -> Self:
        """The settings from the environment.

        Raises:
            SettingsError: naming every key at fault and what to do.
        """
        known = {cls.prefix + name.upper() for name in cls.model_fields}
        present = {
            key
            for key in os.environ
            if key.startswith(cls.prefix) and not key.startswith(cls.foreign_prefixes)
        }
        if unknown := sorted(present - known):
            raise SettingsError(
                f"unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        values = {
            name: os.environ[cls.prefix + name.upper()]
            for name in cls.model_fields
            if cls.prefix + name.upper() in os.environ
        }
        try:
            return cls.model_validate_strings(values)
        except ValidationError as error:
            faults = "; ".join(
                f"{cls.prefix}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()
            )
            raise SettingsError(f"settings at fault: {faults}") from error


class PlatformSettings(Settings):
    """What every process of the platform needs.

    ``postgres_url`` is ``postgresql://user:password@host:port/database``; ``site_clock_speed`` is
    site seconds per wall second (1 unless the site is simulated). The other stores may be absent
    (an empty URL): without ``valkey_url`` (``valkey://:password@host:port/0``) nothing is limited
    or cached, without ``s3_url`` the registry refuses, and without ``metrics_url``
    (``http://user:password@host:port`` of a VictoriaMetrics) there are no series. What
    ``metrics_absent_reason`` says is told to who asks for series that cannot be had.
    """

    prefix: ClassVar[str] = "DFLARE_"
    foreign_prefixes: ClassVar[tuple[str, ...]] = (
        "DFLARE_AUTH_",
        "DFLARE_BAREMETAL_",
        "DFLARE_CLI_",
        "DFLARE_CLUSTERS_",
        "DFLARE_LIMITS_",
        "DFLARE_METERING_",
        # Its class must name DFLARE_METRICS_URL and DFLARE_METRICS_ABSENT_REASON as foreign.
        "DFLARE_METRICS_",
        "DFLARE_NETWORK_",
        "DFLARE_ORCHESTRATOR_",
        "DFLARE_REGISTRY_",
        "DFLARE_RELAY_",
        # The local starter's, which its processes inherit.
        "DFLARE_SLURM_",
        "DFLARE_TEST_",
        "DFLARE_VICTORIAMETRICS_",
        "DFLARE_VOLUMES_",
    )

    postgres_url: str
    temporal_address: str
    temporal_namespace: str = "default"
    secret_key_file: str
    public_url: str = "http://127.0.0.1:8080"
    gateway_host: str = "127.0.0.1"
    gateway_port: int = 8080
    agent_host: str = "127.0.0.1"
    agent_port: int = 8081
    device_ca_file: str = ""
    site_clock_speed: float = 1.0
    heartbeat_s: float = 10.0
    sticky_queue_s: float = 5.0
    log_format: str = "json"
    log_level: str = "INFO"
    data_dir: str = ""
    valkey_url: str = ""
    s3_url: str = ""
    s3_access_key: str = ""
    s3_secret_key_file: str = ""
    s3_bucket: str = "dflare"
    s3_region: str = "us-east-1"
    metrics_url: str = ""
    metrics_absent_reason: str = ""
