"""Ethernet switches: the port and its drivers."""
