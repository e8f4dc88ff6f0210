"""Push and pull of 512 MiB: the registry of a whole platform beside Debian's docker-registry, by
the same client (skopeo) in the same run, by turns.

The platform checks a login and rights at each request and keeps blobs in SeaweedFS; docker-registry
is run as Debian ships it: no login, files below a folder.
"""

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.report import seconds, table
from oci_layout import files_of, write_layout
from registry_login import logged_in
from running_platform import PlatformWish, running_platform

LAYERS, LAYER_MIB, ROUNDS = 4, 128, 3
MIB = LAYERS * LAYER_MIB
READY_WITHIN_S = 30.0

CONFIGURATION = """\
version: 0.1
log: {level: error}
storage:
  filesystem: {rootdirectory: ROOT}
  delete: {enabled: true}
http: {addr: "127.0.0.1:PORT"}
"""


def run() -> None:
    """Print the table."""
    missing = [name for name in ("skopeo", "docker-registry") if shutil.which(name) is None]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}; they are Debian packages")
    folder = Path(tempfile.mkdtemp(prefix="dflare-bench-registry-"))
    try:
        asyncio.run(_compare(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _compare(folder: Path) -> None:
    taken: dict[tuple[str, str], list[float]] = {}
    with docker_registry(folder) as port:
        async with running_platform(PlatformWish(nodes=1, every_store=True)) as platform:
            own = await logged_in(platform, "bench")
            places = {
                "dflare": (f"{own.host}/{own.name('image')}", f"{own.user}:{own.password}"),
                "docker-registry": (f"127.0.0.1:{port}/image", ""),
            }
            for turn in range(ROUNDS):
                # Layers of its own: those of an earlier turn would be mounted instead of sent.
                layout = write_layout(folder / f"image-{turn}", LAYERS, LAYER_MIB * 2**20)
                for name, (place, login) in places.items():
                    times = await asyncio.to_thread(
                        _push_and_pull, folder / "back", layout, f"{place}-{turn}:v1", login
                    )
                    for what, took_s in times.items():
                        taken.setdefault((what, name), []).append(took_s)
                shutil.rmtree(layout)
    print(_table(taken))


def _push_and_pull(back: Path, layout: Path, image: str, login: str) -> Mapping[str, float]:
    pushing = ["--dest-tls-verify=false", *(["--dest-creds", login] if login else [])]
    pulling = ["--src-tls-verify=false", *(["--src-creds", login] if login else [])]
    times = {
        "push": _timed(["skopeo", "copy", *pushing, f"oci:{layout}:v1", f"docker://{image}"]),
        "pull": _timed(["skopeo", "copy", *pulling, f"docker://{image}", f"oci:{back}:v1"]),
    }
    assert files_of(back).keys() == files_of(layout).keys()
    shutil.rmtree(back)
    return times


def _timed(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


@contextmanager
def docker_registry(folder: Path) -> Iterator[int]:
    """Debian's registry until the block ends; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    text = CONFIGURATION.replace("ROOT", str(folder / "registry")).replace("PORT", str(port))
    (folder / "config.yml").write_text(text)
    command = ["docker-registry", "serve", str(folder / "config.yml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            yield port
        finally:
            process.kill()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _table(taken: Mapping[tuple[str, str], Sequence[float]]) -> str:
    rows: list[list[object]] = []
    for (what, name), times in sorted(taken.items()):
        best = min(times)
        every = ", ".join(seconds(one) for one in times)
        rows.append([what, name, every, f"{MIB / best:,.0f} MiB/s"])
    return table(
        f"An image of {LAYERS} layers of {LAYER_MIB} MiB by skopeo, {ROUNDS} times by turns",
        ["", "registry", "times", "at best"],
        rows,
    )
