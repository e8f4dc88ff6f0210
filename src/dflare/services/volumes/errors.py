"""Refusals of the volumes service."""

from dflare.kit.errors import ConflictError, InvalidError


class UnknownSiteError(InvalidError):
    """The order names a site that does not exist."""

    slug, title = "unknown-site", "Unknown site"


class UnknownClusterError(InvalidError):
    """The project has no such cluster at the volume's site."""

    slug, title = "unknown-cluster", "Unknown cluster"


class VolumeBusyError(ConflictError):
    """Another operation acts on the volume."""

    slug, title = "volume-busy", "Volume busy"


class VolumeInUseError(ConflictError):
    """Clusters have access to the volume."""

    slug, title = "in-use", "In use"


class VolumeQuotaError(ConflictError):
    """The project's volumes would be larger together than its quota allows."""

    slug, title = "quota", "Quota exceeded"


class TooSmallError(ConflictError):
    """The volume holds more than the size that is asked for."""

    slug, title = "volume-too-small", "Volume too small"


class NoSnapshotsError(ConflictError):
    """The storage of the volume takes no snapshots, or no more of this volume."""

    slug, title = "no-snapshots", "No snapshots"
