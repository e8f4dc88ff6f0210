"""The services that a process can be told to serve."""

SERVICES = (
    "auth",
    "baremetal",
    "clusters",
    "metering",
    "metrics",
    "network",
    "orchestrator",
    "registry",
    "volumes",
)
