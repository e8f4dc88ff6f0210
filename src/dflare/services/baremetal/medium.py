"""The boot medium: one ISO 9660 image made once, whose settings file differs by node.

Form: ``docs/how-to/agent-protocol.md``, "Boot medium".
"""

from functools import cache
from io import BytesIO
from typing import Any

import orjson
import pycdlib

SETTINGS_BYTES = 4096
_README = b"This medium starts the Dflare agent. It holds no operating system (simulated site).\n"
_MARK = b"dflare-settings-of-one-node".ljust(SETTINGS_BYTES, b" ")


@cache
def _template() -> tuple[bytes, int]:
    """The image and the offset of its settings."""
    iso: Any = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident="DFLARE")
    iso.add_directory("/DFLARE")
    iso.add_fp(BytesIO(_MARK), len(_MARK), "/DFLARE/AGENT.JSON;1")
    iso.add_fp(BytesIO(_README), len(_README), "/README.TXT;1")
    out = BytesIO()
    iso.write_fp(out)
    iso.close()
    image = out.getvalue()
    return image, image.index(_MARK)


def agent_iso(node_id: str, agent_url: str, token: str, poll_s: float) -> bytes:
    """The medium of one node.

    Raises:
        ValueError: the settings do not fit.
    """
    settings = orjson.dumps(
        {
            "version": 1,
            "node_id": node_id,
            "agent_url": agent_url,
            "token": token,
            "poll_s": poll_s,
        }
    )
    if len(settings) > SETTINGS_BYTES:
        raise ValueError(f"settings of {len(settings)} bytes do not fit into {SETTINGS_BYTES}")
    image, at = _template()
    return b"".join(
        (image[:at], settings.ljust(SETTINGS_BYTES, b" "), image[at + SETTINGS_BYTES :])
    )
