"""Refusals of the registry. ``code`` is the error code that clients of the distribution
specification know (version 1.1, section "Error Codes")."""

from typing import ClassVar

from dflare.kit.errors import ProblemError


class RegistryError(ProblemError):
    """A refusal with a code of the specification."""

    status, slug, title = 400, "registry-request", "Bad registry request"
    code: ClassVar[str] = "UNSUPPORTED"


class NameInvalidError(RegistryError):
    """It cannot be the name of a repository."""

    slug, title, code = "name-invalid", "Invalid repository name", "NAME_INVALID"


class NameUnknownError(RegistryError):
    """There is no such repository, or the caller may not know that there is."""

    status, slug, title, code = 404, "not-found", "Not found", "NAME_UNKNOWN"


class BlobUnknownError(RegistryError):
    """The repository has no such blob."""

    status, slug, title, code = 404, "blob-unknown", "Unknown blob", "BLOB_UNKNOWN"


class BlobInUseError(RegistryError):
    """A manifest of the repository refers to the blob."""

    status, slug, title, code = 405, "in-use", "In use", "UNSUPPORTED"


class UploadUnknownError(RegistryError):
    """There is no such upload: it ended, or nobody went on with it for long."""

    status, slug, title, code = 404, "upload-unknown", "Unknown upload", "BLOB_UPLOAD_UNKNOWN"


class UploadInvalidError(RegistryError):
    """The request does not fit the upload."""

    slug, title, code = "upload-invalid", "Invalid upload", "BLOB_UPLOAD_INVALID"


class UploadTakenError(RegistryError):
    """A later request goes on with the upload."""

    status, slug, title, code = 409, "upload-taken", "Upload taken over", "BLOB_UPLOAD_INVALID"


class ChunkOrderError(RegistryError):
    """The chunk does not begin where the upload ends."""

    status, slug, title, code = 416, "chunk-order", "Chunk out of order", "BLOB_UPLOAD_INVALID"


class DigestInvalidError(RegistryError):
    """A digest is malformed, or is not that of the content."""

    slug, title, code = "digest-invalid", "Wrong digest", "DIGEST_INVALID"


class SizeInvalidError(RegistryError):
    """More or less was sent than was announced, or more than can be stored."""

    slug, title, code = "size-invalid", "Wrong size", "SIZE_INVALID"


class ManifestTooLargeError(SizeInvalidError):
    """The manifest is larger than any may be."""

    status, slug, title = 413, "manifest-too-large", "Manifest too large"


class RangeInvalidError(RegistryError):
    """The blob does not have the bytes that are asked for."""

    status, slug, title, code = 416, "range-invalid", "Range not satisfiable", "SIZE_INVALID"


class ManifestInvalidError(RegistryError):
    """It is not a manifest that this registry keeps."""

    slug, title, code = "manifest-invalid", "Invalid manifest", "MANIFEST_INVALID"


class ManifestUnknownError(RegistryError):
    """The repository has no such manifest or tag."""

    status, slug, title, code = 404, "manifest-unknown", "Unknown manifest", "MANIFEST_UNKNOWN"


class MissingReferenceError(RegistryError):
    """The manifest refers to something that the repository does not have."""

    status, slug, title = 404, "missing-reference", "Missing reference"
    code = "MANIFEST_BLOB_UNKNOWN"


class StorageQuotaError(RegistryError):
    """The project's repositories would hold more than its quota allows."""

    status, slug, title, code = 403, "quota", "Quota exceeded", "DENIED"


class BusyError(RegistryError):
    """As many uploads run as may at once."""

    status, slug, title, retryable = 429, "busy", "Too many uploads", True
    code = "TOOMANYREQUESTS"
