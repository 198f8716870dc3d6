"""temporary"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mambabyte.config.settings import Settings, fill, setting


@dataclass
class DataSettings(Settings):
    section: ClassVar[str] = "data"
    source: dict[str, Any]
    windows: Literal["random_per_document", "contiguous", "packed"] = "random_per_document"
    streaming: bool = False
    workers: int = setting(default=0, at_least=0)
    folder: Path = Path("data/prepared")
    validation_bytes: int | None = setting(default=None, at_least=1)
    block_windows: int = setting(default=1024, at_least=1)

    @classmethod
    def from_settings(cls, values: Any, where: str) -> DataSettings:
        if isinstance(values, cls):
            return values
        names = {"source", "windows", "streaming", "workers", "folder", "validation_bytes", "block_windows"}
        return (
            fill(cls, {k: v for k, v in values.items() if k in names}, where)
            if not isinstance(values, cls)
            else values
        )

    def build_source(self, only_ours: bool = False) -> Any:
        from mambabyte.data import source_from_config

        return source_from_config(self.source, only_ours)

    def with_absolute_paths(self) -> DataSettings:
        from dataclasses import replace

        from mambabyte.data.sources.documents import with_absolute_paths

        return replace(self, source=with_absolute_paths({"source": self.source})["source"])
