"""Refusals of the bare-metal service, and what ends a step on one node."""

from dflare.kit.errors import ConflictError, InvalidError


class SiteInvalidError(InvalidError):
    """The site document is refused; ``errors`` holds every problem with line and key."""

    slug, title = "site-invalid", "Invalid site document"


class NodesInUseError(ConflictError):
    """The change touches nodes that are in use; ``nodes`` names them."""

    slug, title = "nodes-in-use", "Nodes in use"


class NodeStateError(ConflictError):
    """The node's state does not allow it."""

    slug, title = "node-state", "Wrong state of the node"


class NodeBusyError(ConflictError):
    """Another operation acts on the node."""

    slug, title = "node-busy", "Node busy"


class NodeFailedError(Exception):
    """A step failed on a node for good; the message is the reason for people.

    ``fault``: the hardware is at fault, so that the node must not be placed again.
    """

    def __init__(self, reason: str, *, fault: bool = False) -> None:
        super().__init__(reason)
        self.fault = fault


class StillWaitingError(Exception):
    """What the step waits for has not come within this activity; the message says what."""
