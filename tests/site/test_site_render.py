import stat
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from dflare.site.document import Credential, SiteDocument
from dflare.site.load import load_site, parse_site
from dflare.site.render import render_data, render_site, write_private, write_site
from dflare.site.synthetic import synthetic_site
from dflare.site.values import compress_ports, expand_ports


def test_a_rendered_site_is_read_back_as_it_was(site_text: str) -> None:
    site = parse_site(site_text)
    text = render_site(site)
    assert parse_site(text) == site
    assert render_site(parse_site(text)) == text


def test_a_rendered_site_holds_its_passwords_and_a_printed_one_does_not(site_text: str) -> None:
    site = parse_site(site_text)
    assert "first-secret" in render_site(site)
    assert "first-secret" not in repr(site)
    assert "first-secret" not in site.model_dump_json()


def test_ports_and_prices_are_written_as_people_write_them(site_text: str) -> None:
    text = render_site(parse_site(site_text))
    assert "ports: [swp1-4]" in text
    assert 'price_per_node_hour: "5.00"' in text
    assert max(len(line) for line in text.splitlines()) <= 100


SITE = synthetic_site(2)


@given(
    description=st.text(max_size=200),
    password=st.text(min_size=1, max_size=60).filter(lambda text: set(text) - {"*"}),
    serial=st.text(min_size=1, max_size=60),
    price=st.decimals(0, 10**8, places=4, allow_nan=False).map(lambda price: abs(price)),
)
def test_any_text_survives_the_round_trip(
    description: str, password: str, serial: str, price: Decimal
) -> None:
    credentials = {
        **SITE.credentials,
        "bmc": Credential(username="u", password=SecretStr(password)),
    }
    node = SITE.nodes[0].model_copy(update={"serial": serial})
    kind = SITE.node_types[0].model_copy(update={"price_per_node_hour": price})
    site = SITE.model_copy(
        update={
            "description": description,
            "credentials": credentials,
            "nodes": (node, *SITE.nodes[1:]),
            "node_types": (kind,),
        }
    )
    assert parse_site(render_site(site)) == site


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=30),
    lambda inner: (
        st.dictionaries(st.text(min_size=1, max_size=12), inner, max_size=5)
        | st.lists(inner.filter(lambda item: not isinstance(item, list)), max_size=5)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(min_size=1, max_size=12), plain, min_size=1, max_size=6))
def test_readers_of_yaml_1_1_read_the_same_data(data: dict[str, object]) -> None:
    assert yaml.load(render_data(data), Loader=yaml.CSafeLoader) == data


@given(
    st.lists(
        st.from_regex(r"[a-z]{1,3}[0-9]{0,3}(s[0-9]{1,2})?", fullmatch=True),
        min_size=1,
        max_size=30,
        unique=True,
    )
)
def test_port_names_survive_being_written_as_ranges(names: list[str]) -> None:
    assert expand_ports(compress_ports(tuple(names))) == tuple(names)


def test_a_site_file_is_private_and_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    write_site(file, SITE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_site(file) == SITE
    with pytest.raises(UnicodeEncodeError):
        write_private(file, "half a file \ud800")
    assert load_site(file) == SITE
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]


def test_a_document_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SITE.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(SITE, SiteDocument)
