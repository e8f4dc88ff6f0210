"""The simulated scheduler host: the operator's machine that runs the controllers of Slurm clusters.

`api` is its HTTP API, as `docs/how-to/scheduler-host.md` describes it; `clusters` what it runs,
`preparation` what it needs for that, and `slurmd` what a server does that was made a node of one.
"""
