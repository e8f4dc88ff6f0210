"""Sites, racks, nodes and their physical state."""
