"""Secrets are made once, whole, and closed to others."""

import base64
import threading
from pathlib import Path

from dflare.embedded.secret_files import ensure_master_key, ensure_password


def test_the_master_key_is_32_random_bytes_that_only_the_owner_reads(tmp_path: Path) -> None:
    key = tmp_path / "secrets" / "master.key"
    ensure_master_key(key)
    first = key.read_text()
    assert len(base64.b64decode(first)) == 32
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700

    ensure_master_key(key)
    assert key.read_text() == first


def test_starts_at_the_same_time_agree_on_one_password(tmp_path: Path) -> None:
    path = tmp_path / "password"
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(ensure_password(path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert set(seen) == {path.read_text().strip()}
    assert [item.name for item in tmp_path.iterdir()] == ["password"]
