"""InfiniBand fabric managers: the port and its drivers."""
