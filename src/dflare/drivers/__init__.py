"""Drivers of devices: one folder a kind, a port and its implementations (DESIGN section 7)."""
