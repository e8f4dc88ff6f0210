"""Options of an order that say where its nodes shall lie, and whether it may wait for them."""

from enum import StrEnum
from typing import Annotated

import typer

from dflare.cli.errors import Json, UsageError


class Same(StrEnum):
    """A group that must hold the whole order, as the API names it."""

    NVLINK_DOMAIN = "nvlink-domain"
    LEAF = "leaf"
    RAIL_BLOCK = "rail-block"
    BLOCK = "block"


SpreadOption = Annotated[
    bool, typer.Option("--spread", help="Over as many racks as possible.", rich_help_panel="Wishes")
]
PackOption = Annotated[
    bool,
    typer.Option(
        "--pack", help="As close together as possible (the default).", rich_help_panel="Wishes"
    ),
]
SameOption = Annotated[
    Same | None,
    typer.Option("--same", help="All in one of these, or nothing.", rich_help_panel="Wishes"),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="NODE",
        help="Not this node; repeat it for more.",
        rich_help_panel="Wishes",
    ),
]
QueueOption = Annotated[
    bool,
    typer.Option(
        "--queue",
        help="Wait for capacity, in turn, where too few nodes are free.",
        rich_help_panel="Wishes",
    ),
]


def wishes_of(
    *, spread: bool, pack: bool, same: Same | None, exclude: list[str] | None, queue: bool
) -> Json:
    """The fields of an order that carry its wishes; none for an order without.

    Raises:
        UsageError: the wishes contradict each other.
    """
    if spread and pack:
        raise UsageError(
            "--spread and --pack contradict each other", next_step="Say one of them or neither."
        )
    if spread and same in (Same.LEAF, Same.NVLINK_DOMAIN):
        raise UsageError(
            f"--spread goes over racks, and one {same} stands in one rack",
            next_step="Leave one of them out, or say --same block or --same rail-block.",
        )
    body: Json = {}
    if spread or pack or same or exclude:
        body["placement"] = {
            "shape": "spread" if spread else "pack",
            **({"same": same.value} if same else {}),
            **({"exclude": exclude} if exclude else {}),
        }
    if queue:
        body["wait_for_capacity"] = True
    return body
