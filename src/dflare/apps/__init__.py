"""The process kinds, and the one place that wires services to drivers and to each other."""
