"""Starts, watches and stops the embedded stores and the platform's processes on one machine."""
