"""Refusals of the orchestrator."""

from dflare.kit.errors import ConflictError, InvalidError


class CapacityError(ConflictError):
    """Fewer nodes are free than wanted; ``facts`` count why the others are not."""

    slug, title, retryable = "capacity", "Not enough free nodes", True


class QuotaError(ConflictError):
    """The project may not hold that many nodes of the type."""

    slug, title = "quota", "Quota exceeded"


class UnknownNodeTypeError(InvalidError):
    """The site has no nodes of that type."""

    slug, title = "unknown-node-type", "Unknown node type"


class UnknownSiteError(InvalidError):
    """No such site was declared."""

    slug, title = "unknown-site", "Unknown site"
