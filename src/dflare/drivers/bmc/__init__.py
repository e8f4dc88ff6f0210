"""Management controllers of servers: the port and its drivers."""
