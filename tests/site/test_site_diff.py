from dflare.site.diff import FieldChange, PartKind, diff
from dflare.site.load import parse_site


def test_the_same_site_has_no_difference(site_text: str) -> None:
    site = parse_site(site_text)
    assert not diff(site, site)
    assert diff(site, site).counts() == {}


def test_order_alone_is_no_difference(site_text: str) -> None:
    site = parse_site(site_text)
    assert not diff(site, site.model_copy(update={"nodes": tuple(reversed(site.nodes))}))


def test_a_new_site_is_all_added(site_text: str) -> None:
    found = diff(None, parse_site(site_text))
    assert (PartKind.NODE, "one") in found.added
    assert not found.changed
    assert not found.removed
    assert found.counts()[PartKind.NODE] == (2, 0, 0)


def test_added_changed_and_removed_parts_are_told_by_kind_name_and_value(site_text: str) -> None:
    old = parse_site(site_text)
    new = parse_site(
        site_text.replace('"5.00"', '"6.00"')
        .replace("  - name: two", "  - name: three")
        .replace("port: swp1}", "port: swp3}")
        .replace("subnet_prefix_length: 24", "subnet_prefix_length: 25")
    )
    found = diff(old, new)
    assert found.added == ((PartKind.NODE, "three"),)
    assert found.removed == ((PartKind.NODE, "two"),)
    changes = {(c.kind, c.name): c.fields for c in found.changed}
    assert changes == {
        (PartKind.POOLS, "pools"): (FieldChange("prefixes[0].subnet_prefix_length", "24", "25"),),
        (PartKind.NODE_TYPE, "big-2"): (FieldChange("price_per_node_hour", "5.00", "6.00"),),
        (PartKind.NODE, "one"): (FieldChange("ethernet[0].port", "swp1", "swp3"),),
    }


def test_a_changed_password_is_told_and_not_shown(site_text: str) -> None:
    new = parse_site(site_text.replace("first-secret", "second-secret"))
    found = diff(parse_site(site_text), new)
    assert [(change.kind, change.name) for change in found.changed] == [
        (PartKind.CREDENTIAL, "bmc")
    ]
    assert "secret" not in repr(found)
    assert found.changed[0].fields == (FieldChange("password", "**********", "**********"),)


def test_a_scheduler_host_that_moves_is_a_change(site_text: str) -> None:
    found = diff(parse_site(site_text), parse_site(site_text.replace("10.0.3.1", "10.0.3.9")))
    assert [(change.kind, change.name) for change in found.changed] == [
        (PartKind.SCHEDULER_HOST, "head-0")
    ]


def test_an_infiniband_fabric_that_goes_is_removed(site_text: str) -> None:
    site = parse_site(site_text)
    fabrics = site.fabrics.model_copy(update={"infiniband": None})
    found = diff(site, site.model_copy(update={"fabrics": fabrics}))
    assert found.removed == ((PartKind.INFINIBAND, "ufm-1"),)
