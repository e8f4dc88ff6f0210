"""The API's own description, completed with what the framework cannot know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_OPERATION = {"$ref": "#/components/schemas/OperationAnswer"}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of ``app``."""
    schema = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        description="Order GPU clusters, follow operations, read usage.",
    )
    schema["components"].setdefault("securitySchemes", {})["bearer"] = {
        "type": "http",
        "scheme": "bearer",
    }
    schema["security"] = [{"bearer": []}]
    _name_operations(schema)
    return schema


def _name_operations(schema: dict[str, Any]) -> None:
    """Say that an order is answered with its operation: a service may not import the model, which
    is orchestrator's, so its routes leave the answer open."""
    for methods in schema["paths"].values():
        for route in methods.values():
            accepted = route["responses"].get("202", {}).get("content", {})
            body = accepted.get("application/json")
            if body is not None and body.get("schema") == {}:
                body["schema"] = dict(_OPERATION)
