"""Dflare: a multi-tenant control plane that turns racks of GPU servers into a cloud."""

__version__ = "0.1.0"
