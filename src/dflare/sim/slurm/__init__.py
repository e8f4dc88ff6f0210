"""Slurm on the simulated hosts: Debian's own daemons, each cluster in namespaces of its own.

`cluster.ClusterNamespace` is what the simulator uses. `init` is the program inside and must start
fast and small, so this file imports nothing.
"""
