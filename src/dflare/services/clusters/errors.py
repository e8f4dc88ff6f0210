"""Refusals of the clusters service."""

from dflare.kit.errors import ConflictError, InvalidError


class UnknownSiteError(InvalidError):
    """The order names a site that does not exist."""

    slug, title = "unknown-site", "Unknown site"


class UnknownNodeTypeError(InvalidError):
    """The site has no nodes of that type."""

    slug, title = "unknown-node-type", "Unknown node type"


class UnknownImageError(InvalidError):
    """The site has no image of that name."""

    slug, title = "unknown-image", "Unknown image"


class UnknownKeyError(InvalidError):
    """The order names an SSH key or user data that the project does not have."""

    slug, title = "unknown-reference", "Unknown reference"


class InvalidKeyError(InvalidError):
    """The text is not an OpenSSH public key."""

    slug, title = "invalid-ssh-key", "Invalid SSH key"


class ClusterBusyError(ConflictError):
    """Another operation acts on the cluster."""

    slug, title = "cluster-busy", "Cluster busy"


class InUseError(ConflictError):
    """A live cluster refers to the resource."""

    slug, title = "in-use", "In use"


class CannotScaleError(ConflictError):
    """The cluster cannot have that many nodes, or not these."""

    slug, title = "cannot-scale", "Cannot scale"


class ProtectedError(ConflictError):
    """The cluster is protected against deletion."""

    slug, title = "cluster-protected", "Cluster protected"


class DrainedByOtherError(ConflictError):
    """Somebody else drained the node."""

    slug, title = "drained-by-other", "Drained by somebody else"


class UnknownNodeError(InvalidError):
    """The cluster, or its pool, has no such node."""

    slug, title = "unknown-node", "Unknown node"


class SlurmUnavailableError(ConflictError):
    """The site cannot run a Slurm cluster now."""

    slug, title = "slurm-unavailable", "Slurm unavailable"


class UnknownVolumeError(InvalidError):
    """The order names a volume that the project does not have there, or that is not ready."""

    slug, title = "unknown-volume", "Unknown volume"


class InvalidMountError(InvalidError):
    """A volume cannot be mounted as the order says."""

    slug, title = "invalid-mount", "Invalid mount"


class NoSchedulerError(ConflictError):
    """The cluster runs no jobs, or not now."""

    slug, title = "no-scheduler", "No scheduler"
