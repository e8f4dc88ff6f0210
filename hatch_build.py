"""Reads the runtime dependencies of the package from requirements/runtime.in, their one home."""

from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class RuntimeRequirements(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        lines = (Path(self.root) / "requirements" / "runtime.in").read_text().split()
        metadata["dependencies"] = lines
