import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from dflare.site.load import parse_site
from dflare.site.render import render_site
from dflare.site.schema import schema_text, site_schema
from dflare.site.synthetic import synthetic_site
from dflare.site.tree import parse_tree

DOCS = Path(__file__).parents[2] / "docs"


def test_the_published_schema_is_the_one_of_the_models() -> None:
    published = (DOCS / "site.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), "run python -m dflare.site.schema docs/site.schema.json"


def test_the_schema_is_valid_and_describes_every_key() -> None:
    schema = site_schema()
    Draft202012Validator.check_schema(schema)
    definitions = schema["$defs"]
    assert isinstance(definitions, dict)
    models = [schema, *definitions.values()]
    bare = [
        key
        for model in models
        for key, value in model.get("properties", {}).items()
        if not value.get("description")
    ]
    assert bare == []


def test_the_schema_accepts_what_the_loader_accepts(site_text: str) -> None:
    validator = Draft202012Validator(site_schema())
    for text in (site_text, render_site(synthetic_site(2)), example()):
        assert parse_site(text)
        data = json.loads(json.dumps(parse_tree(text.encode()).data))
        assert [error.message for error in validator.iter_errors(data)] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("region: north", "regoin: north"),
        ("    serial: S1\n", ""),
        ("    memory_gib: 512", "    memory_gib: lots"),
        ("role: spine", "role: core"),
        ('"5.00"', "5.00"),
        ("mac: 02:00:00:00:00:02", "mac: nonsense"),
    ],
)
def test_the_schema_refuses_wrong_keys_and_values(site_text: str, old: str, new: str) -> None:
    assert old in site_text
    data = parse_tree(site_text.replace(old, new, 1).encode()).data
    assert list(Draft202012Validator(site_schema()).iter_errors(data))


def test_the_example_of_the_guide_is_a_valid_site() -> None:
    assert parse_site(example()).nodes


def example() -> str:
    guide = (DOCS / "how-to/site.md").read_text(encoding="utf-8")
    return guide.split("```yaml\n")[1].split("```")[0]
