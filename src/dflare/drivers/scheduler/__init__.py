"""Schedulers of tenants' clusters: the port and its drivers."""
