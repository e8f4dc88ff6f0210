"""No page of the API is without bound."""

import json
from pathlib import Path
from typing import Any

import pytest

from dflare.kit.pagination import MAX_LIMIT

DESCRIPTION = Path(__file__).parents[2] / "portal" / "openapi.json"
"""What the gateway says of itself; another test holds it to that."""

OF_BYTES = {"/v1/projects/{project}/clusters/{cluster}/jobs/{job}/output"}


@pytest.mark.skipif(not DESCRIPTION.exists(), reason="the API's description is not kept here")
def test_no_list_takes_a_limit_above_the_largest_page() -> None:
    document: dict[str, Any] = json.loads(DESCRIPTION.read_text())
    limits = {
        path: parameter["schema"]
        for path, methods in document["paths"].items()
        for parameter in methods.get("get", {}).get("parameters", ())
        if parameter["name"] == "limit"
    }
    assert len(limits) > 20
    assert {
        path: schema
        for path, schema in limits.items()
        if not 1 <= schema["minimum"] <= schema["maximum"] <= MAX_LIMIT and path not in OF_BYTES
    } == {}
