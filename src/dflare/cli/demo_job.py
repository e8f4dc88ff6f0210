"""The demonstration's job: as many GPUs as the cluster has, by the API alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dflare.cli.demo_story import Order, Story


def job(story: "Story", order: "Order") -> None:
    """Run a job on every GPU of the cluster and show what it printed; say why where it cannot."""
    if order.kind != "slurm":
        return
