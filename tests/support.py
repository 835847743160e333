"""What tests share: the folder of real data, and how to say it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_CANDIDATE = Path(os.environ.get("TRIGLYPH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
SHARED: Path | None = _CANDIDATE if (_CANDIDATE / "her2st").is_dir() else None
"""Real tissue, read in place and never copied; None where it is absent."""

needs_shared = pytest.mark.skipif(SHARED is None, reason="needs the real tissue of shared/data (her2st, visium_sample)")
