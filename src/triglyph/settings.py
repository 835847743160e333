"""Settings of this process, from `TRIGLYPH_*` environment variables; nothing is read from the working directory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def _cache_dir() -> Path:
    given = os.environ.get("TRIGLYPH_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "triglyph"


def _workers() -> int:
    return int(os.environ.get("TRIGLYPH_WORKERS", min(8, len(os.sched_getaffinity(0)))))


def _offline() -> bool:
    return any(os.environ.get(key, "") not in ("", "0") for key in ("TRIGLYPH_OFFLINE", "HF_HUB_OFFLINE"))


@dataclass
class Settings:
    """What a user may set once for a machine."""

    cache_dir: Path = field(default_factory=_cache_dir)
    workers: int = field(default_factory=_workers)
    offline: bool = field(default_factory=_offline)


settings = Settings()
