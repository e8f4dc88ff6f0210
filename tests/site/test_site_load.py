from pathlib import Path

import pytest

from dflare.site.document import ServerVendor
from dflare.site.load import check_document, load_site, parse_site
from dflare.site.problems import PROBLEMS_AT_MOST, SiteErrors, SiteProblem


def problems_of(text: str | bytes) -> tuple[SiteProblem, ...]:
    with pytest.raises(SiteErrors) as caught:
        parse_site(text)
    return caught.value.problems


def test_a_valid_site_is_read_whole(site_text: str) -> None:
    site = parse_site(site_text)
    assert [node.name for node in site.nodes] == ["one", "two"]
    assert site.nodes[0].ethernet[0].mac == "02:00:00:00:00:01"
    assert site.nodes[0].infiniband[0].guid == "0002c90300000010"
    assert site.fabrics.ethernet.switches[0].ports == ("swp1", "swp2", "swp3", "swp4")
    assert site.pools.pkeys[0].first == 0x10
    assert str(site.node_types[0].price_per_node_hour) == "5.00"
    assert site.vendor_of(site.nodes[0]) is ServerVendor.DELL
    assert site.nvlink_domain_of(site.nodes[1]) == "two"
    check_document(site)


def test_a_site_is_read_from_a_file_and_errors_carry_its_name(
    tmp_path: Path, site_text: str
) -> None:
    file = tmp_path / "north.yaml"
    file.write_text(site_text)
    assert load_site(file).name == "lab"
    file.write_text(site_text.replace("region: north\n", ""))
    with pytest.raises(SiteErrors, match=r"north\.yaml:1:1: region: the key region is missing"):
        load_site(file)


@pytest.mark.parametrize(
    ("written", "mac", "guid"),
    [
        ("12:34:56:10:20:30", "12:34:56:10:20:30", "0002000000000001"),
        ("02-AB-00-00-00-01", "02:ab:00:00:00:01", "0x0002c903000A0B0C"),
        ("02:00:00:00:00:09", "02:00:00:00:00:09", "5000000000000001"),
        ("02:00:00:00:00:09", "02:00:00:00:00:09", "0002:c903:000a:0b0c"),
    ],
)
def test_addresses_of_digits_need_no_quotes(
    site_text: str, written: str, mac: str, guid: str
) -> None:
    """YAML 1.1 would read the first MAC as a number to base 60, the GUIDs as octal or decimal."""
    text = site_text.replace("02:00:00:00:00:01", written).replace("0002c90300000010", guid)
    node = parse_site(text).nodes[0]
    assert node.ethernet[0].mac == mac
    assert node.infiniband[0].guid == guid.lower().removeprefix("0x").replace(":", "")


def test_json_is_read_with_lines_too() -> None:
    problems = problems_of('{\n  "version": 1,\n  "nam": "x"\n}')
    assert SiteProblem(3, 3, "nam", "unknown key nam", "did you mean name?") in problems


def test_all_problems_are_told_at_once_in_the_order_of_lines(site_text: str) -> None:
    text = (
        site_text.replace("region: north", "regoin: north")
        .replace('"100-199"', '"1-199"')
        .replace("    serial: S2", "    serial: S1")
        .replace("port: swp2}", "port: swp7}")
        .replace("mac: 02:00:00:00:00:01", "mac: nonsense")
    )
    problems = problems_of(text)
    paths = [problem.path for problem in problems]
    assert [p.line for p in problems] == sorted(p.line for p in problems)
    assert paths == [
        "region",
        "regoin",
        "pools.vlans[0]",
        "nodes[0].ethernet[0].mac",
        "nodes[1].serial",
        "nodes[1].ethernet[0].port",
    ]


def test_at_most_fifty_problems_are_shown_and_the_rest_is_counted(site_text: str) -> None:
    broken = "".join(f"  - {{name: rack-{n}, row: r, block: B}}\n" for n in range(2, 82))
    text = site_text.replace("nodes:\n  - name: one", broken + "nodes:\n  - name: one")
    with pytest.raises(SiteErrors) as caught:
        parse_site(text)
    assert len(caught.value.problems) == PROBLEMS_AT_MOST
    assert caught.value.left_out == 30
    assert "30 more problems are not shown" in str(caught.value)


def test_columns_point_at_the_value(site_text: str) -> None:
    text = site_text.replace("switch: leaf-1, port: swp2}", "switch: leaf-1, port: swp9}")
    (problem,) = problems_of(text)
    line = text.splitlines()[problem.line - 1]
    assert line[problem.column - 1 :].startswith("swp9")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the document is empty"),
        (b"# only a comment\n", "the document is empty"),
        (b"just words", "must be a group of keys"),
        (b"- a\n- b\n", "must be a group of keys"),
        (b"name: caf\xe9\n", "not UTF-8"),
        (b"a: 1\n---\nb: 2\n", "YAML syntax"),
        (b"a: &x [*x]\n", "alias stands inside its own anchor"),
        (b"? [a]\n: 1\n", "a key must be a plain word"),
        (b"name: \x00\n", "YAML syntax"),
    ],
)
def test_what_is_no_site_at_all_is_refused_in_words(text: bytes, words: str) -> None:
    assert any(words in str(problem) for problem in problems_of(text))


def test_an_error_never_shows_a_password(site_text: str) -> None:
    for text in (
        site_text.replace("password: first-secret", "password: 123456789"),
        site_text.replace("password: first-secret", "password: first-secret, password_env: X"),
        site_text.replace("password: first-secret", "password: first-secret, x: 1"),
    ):
        with pytest.raises(SiteErrors) as caught:
            parse_site(text)
        shown = str(caught.value)
        assert "123456789" not in shown
        assert "first-secret" not in shown


def test_anchors_and_aliases_are_understood(site_text: str) -> None:
    text = site_text.replace("credentials_ref: bmc}\n", "credentials_ref: &account bmc}\n", 1)
    text = text.replace(
        "10.0.0.2:443, credentials_ref: bmc", "10.0.0.2:443, credentials_ref: *account"
    )
    assert text != site_text
    assert parse_site(text) == parse_site(site_text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested deeper"),
        ("a: " + "{b: " * 5_000, "nested deeper"),
        ("- " * 20_000 + "x", "nested deeper"),
        ("\n".join(" " * depth + "a:" for depth in range(3_000)), "nested deeper"),
        (f"a: &a [{'1,' * 3_000}]\nb: [{'*a,' * 3_000}]\n", "aliases stand for more"),
        ("#" * (33 << 20), "over 32 MiB"),
    ],
    ids=["brackets", "braces", "dashes", "indents", "aliases", "size"],
)
def test_a_text_made_to_exhaust_the_reader_is_refused(text: str, words: str) -> None:
    assert any(words in str(problem) for problem in problems_of(text))
