"""Error bodies: ``error`` with ``@Message.ExtendedInfo`` (DSP0266, 8.6).

The texts are those of DSP8011's Base registry 1.18.1, and of HPE's message registry iLO.2.19,
since clients show and match them.
"""

from dataclasses import dataclass, field

REGISTRY = "Base.1.18.1"
_PREFIX = "Base.1.18"
_ILO_PREFIX = "iLO.2.19"
_TERSE_CODE = "iLO.0.10.ExtendedInfo"
_TERSE_MESSAGE = "See @Message.ExtendedInfo for more information."


@dataclass(frozen=True, slots=True)
class _Text:
    message: str
    resolution: str
    severity: str = "Warning"


_TEXTS: dict[str, _Text] = {
    "Success": _Text("The request completed successfully.", "None.", "OK"),
    "GeneralError": _Text(
        "A general error has occurred.  See Resolution for information on how to resolve the "
        "error, or @Message.ExtendedInfo if Resolution is not provided.",
        "None.",
        "Critical",
    ),
    "InternalError": _Text(
        "The request failed due to an internal service error.  The service is still operational.",
        "Resubmit the request.  If the problem persists, consider resetting the service.",
        "Critical",
    ),
    "MalformedJSON": _Text(
        "The request body submitted was malformed JSON and could not be parsed by the receiving "
        "service.",
        "Ensure that the request body is valid JSON and resubmit the request.",
        "Critical",
    ),
    "NoValidSession": _Text(
        "There is no valid session established with the implementation.",
        "Establish a session before attempting any operations.",
        "Critical",
    ),
    "ResourceMissingAtURI": _Text(
        "The resource at the URI '%1' was not found.",
        "Place a valid resource at the URI or correct the URI and resubmit the request.",
        "Critical",
    ),
    "ResourceInUse": _Text(
        "The change to the requested resource failed because the resource is in use or in "
        "transition.",
        "Remove the condition and resubmit the request if the operation failed.",
    ),
    "OperationNotAllowed": _Text(
        "The HTTP method is not allowed on this resource.", "None.", "Critical"
    ),
    "PropertyUnknown": _Text(
        "The property %1 is not in the list of valid properties for the resource.",
        "Remove the unknown property from the request body and resubmit the request if the "
        "operation failed.",
    ),
    "PropertyNotWritable": _Text(
        "The property %1 is a read-only property and cannot be assigned a value.",
        "Remove the property from the request body and resubmit the request if the operation "
        "failed.",
    ),
    "PropertyMissing": _Text(
        "The property %1 is a required property and must be included in the request.",
        "Ensure that the property is in the request body and has a valid value and resubmit the "
        "request if the operation failed.",
    ),
    "PropertyValueNotInList": _Text(
        "The value '%1' for the property %2 is not in the list of acceptable values.",
        "Choose a value from the enumeration list that the implementation can support and resubmit "
        "the request if the operation failed.",
    ),
    "PropertyValueTypeError": _Text(
        "The value '%1' for the property %2 is not a type that the property can accept.",
        "Correct the value for the property in the request body and resubmit the request if the "
        "operation failed.",
    ),
    "PropertyValueOutOfRange": _Text(
        "The value '%1' for the property %2 is not in the supported range of acceptable values.",
        "Correct the value for the property in the request body and resubmit the request if the "
        "operation failed.",
    ),
    "ActionParameterMissing": _Text(
        "The action %1 requires the parameter %2 to be present in the request body.",
        "Supply the action with the required parameter in the request body when the request is "
        "resubmitted.",
        "Critical",
    ),
    "ActionParameterNotSupported": _Text(
        "The parameter %1 for the action %2 is not supported on the target resource.",
        "Remove the parameter supplied and resubmit the request if the operation failed.",
    ),
    "ActionParameterValueNotInList": _Text(
        "The value '%1' for the parameter %2 in the action %3 is not in the list of acceptable "
        "values.",
        "Choose a value from the enumeration list that the implementation can support and resubmit "
        "the request if the operation failed.",
    ),
    "ActionParameterValueFormatError": _Text(
        "The value '%1' for the parameter %2 in the action %3 is not a format that the parameter "
        "can accept.",
        "Correct the value for the parameter in the request body and resubmit the request if the "
        "operation failed.",
    ),
    "PreconditionFailed": _Text(
        "The ETag supplied did not match the ETag required to change this resource.",
        "Try the operation again using the appropriate ETag.",
        "Critical",
    ),
    "PreconditionRequired": _Text(
        "A precondition header or annotation is required to change this resource.",
        "Try the operation again using an If-Match or If-None-Match header and appropriate ETag.",
        "Critical",
    ),
    "QueryParameterOutOfRange": _Text(
        "The value '%1' for the query parameter %2 is out of range %3.",
        "Reduce the value for the query parameter to a value that is within range, such as a start "
        "or count value that is within bounds of the number of resources in a collection or a page "
        "number that is within the range of valid pages.",
    ),
    "QueryNotSupportedOnResource": _Text(
        "Querying is not supported on the requested resource.",
        "Remove the query parameters and resubmit the request if the operation failed.",
    ),
    "SessionLimitExceeded": _Text(
        "The session establishment failed due to the number of simultaneous sessions exceeding the "
        "limit of the implementation.",
        "Reduce the number of other sessions before trying to establish the session or increase "
        "the limit of simultaneous sessions, if supported.",
        "Critical",
    ),
}
_ILO_TEXTS: dict[str, _Text] = {
    "InvalidOperationForSystemState": _Text(
        "The operation was not successful due to the current power state.",
        "Verify that the system is in the correct power state, and then retry the operation.",
    ),
    "NoVirtualMediaConnectionAvailable": _Text(
        "No Virtual Media connections exist to perform the operation.",
        "Create or open a Virtual Media connection, and then retry the operation.",
    ),
    "SystemResetRequired": _Text(
        "The system properties were correctly changed, but will not take effect until the system "
        "is reset.",
        "Reset system for the settings to take effect.",
    ),
}


@dataclass(slots=True)
class RedfishError(Exception):
    """A refusal: HTTP status, the key of a message, its arguments, extra header fields.

    ``related`` names the properties meant, as JSON pointers after ``#/``.
    """

    status: int
    key: str
    args: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict[str, str])

    def body(self, *, terse: bool) -> dict[str, object]:
        """The answer's body; a terse one names messages by id and arguments alone."""
        if terse:
            return terse_body(self.key, self.args)
        info = message(self.key, self.args, self.related)
        return {
            "error": {
                "code": info["MessageId"],
                "message": info["Message"],
                "@Message.ExtendedInfo": [info],
            }
        }


def message(
    key: str, args: tuple[str, ...] = (), related: tuple[str, ...] = ()
) -> dict[str, object]:
    """A Message object (schema Message.v1_2_0)."""
    text = _TEXTS.get(key) or _ILO_TEXTS[key]
    words = text.message
    for number, value in enumerate(args, 1):
        words = words.replace(f"%{number}", value)
    info: dict[str, object] = {
        "@odata.type": "#Message.v1_2_0.Message",
        "MessageId": _message_id(key),
        "Message": words,
        "MessageArgs": list(args),
        "MessageSeverity": text.severity,
        "Resolution": text.resolution,
    }
    if related:
        info["RelatedProperties"] = [f"#/{name}" for name in related]
    return info


def terse_body(key: str, args: tuple[str, ...] = ()) -> dict[str, object]:
    """A body as iLO writes it, for refusals and successes alike."""
    info: dict[str, object] = {"MessageId": _message_id(key)}
    if args:
        info["MessageArgs"] = list(args)
    return {
        "error": {
            "code": _TERSE_CODE,
            "message": _TERSE_MESSAGE,
            "@Message.ExtendedInfo": [info],
        }
    }


def _message_id(key: str) -> str:
    return f"{_PREFIX if key in _TEXTS else _ILO_PREFIX}.{key}"
