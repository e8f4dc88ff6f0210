"""Refusals of the network service."""

from dflare.kit.errors import ConflictError


class PoolExhaustedError(ConflictError):
    """A site has no free identifier of some kind."""

    slug, title = "pool-exhausted", "No free identifier"


class LeaseLostError(Exception):
    """Another process reconciles the device now; this one must not write to it."""
