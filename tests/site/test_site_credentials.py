from pathlib import Path

import pytest

from dflare.site.credentials import resolve_credentials
from dflare.site.load import parse_site
from dflare.site.problems import SiteErrors


def test_passwords_are_read_from_files_and_variables(tmp_path: Path, site_text: str) -> None:
    (tmp_path / "net.password").write_text("from file \n")
    site = resolve_credentials(parse_site(site_text), tmp_path, {"UFM_PASSWORD": "from variable"})
    passwords = {
        ref: credential.password.get_secret_value()
        for ref, credential in site.credentials.items()
        if credential.password
    }
    assert passwords == {"bmc": "first-secret", "net": "from file ", "ufm": "from variable"}
    assert all(
        c.password_file is None and c.password_env is None for c in site.credentials.values()
    )


def test_every_password_that_is_missing_is_named(tmp_path: Path, site_text: str) -> None:
    with pytest.raises(SiteErrors) as caught:
        resolve_credentials(parse_site(site_text), tmp_path, {})
    text = str(caught.value)
    assert "credentials.net: the password file" in text
    assert "No such file" in text
    assert "credentials.ufm: the environment variable UFM_PASSWORD is not set" in text


@pytest.mark.parametrize(("content", "words"), [(b"\n", "is empty"), (b"caf\xe9", "not UTF-8")])
def test_an_unusable_password_file_is_refused(
    tmp_path: Path, site_text: str, content: bytes, words: str
) -> None:
    (tmp_path / "net.password").write_bytes(content)
    with pytest.raises(SiteErrors, match=words):
        resolve_credentials(parse_site(site_text), tmp_path, {"UFM_PASSWORD": "x"})
