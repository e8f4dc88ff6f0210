"""Measurements of nodes and of the platform, asked for by tenants; alerts."""
