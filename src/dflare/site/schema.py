"""The JSON Schema of site.yaml, for editors and other programs.

``python -m dflare.site.schema FILE`` writes it to FILE. The schema says what one value may be;
references, duplicates and overlaps are beyond it and are checked by the loader alone.
"""

import json
import sys
from pathlib import Path

from pydantic.json_schema import GenerateJsonSchema

from dflare.site.document import SiteDocument


class _WithoutTitles(GenerateJsonSchema):
    """A title that repeats the key tells a reader nothing."""

    def field_title_should_be_set(self, schema: object) -> bool:
        del schema
        return False


def site_schema() -> dict[str, object]:
    """Return the schema in the dialect of JSON Schema 2020-12."""
    schema = SiteDocument.model_json_schema(schema_generator=_WithoutTitles)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:dflare:site:1",
        **schema,
    }


def schema_text() -> str:
    """Return the schema as the text of ``docs/site.schema.json``."""
    return json.dumps(site_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema_text(), encoding="utf-8")
