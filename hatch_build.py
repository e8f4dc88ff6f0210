"""Reads the runtime dependencies of the package from requirements/runtime.in, their one home, and
takes the built portal into the wheel."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


class RuntimeRequirements(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        lines = (Path(self.root) / "requirements" / "runtime.in").read_text().split()
        metadata["dependencies"] = lines


class BuiltPortal(BuildHookInterface):
    """A wheel holds the portal's files where ``dflare.apps.portal`` looks for them. An editable
    installation finds them in the checkout; a source distribution holds what they are made of."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        built = Path(self.root) / "portal" / "dist"
        if (built / "index.html").is_file():
            build_data["force_include"][str(built)] = "dflare/portal_files"
        else:
            self.app.display_warning(
                "The wheel holds no portal: build it by `make portal` before. "
                "A gateway without it serves a page that says so."
            )
