"""Benchmarks. Each prints a table with the machine it ran on; none is a test."""
