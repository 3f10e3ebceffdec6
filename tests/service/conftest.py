"""Helpers of this folder (`running.py`, `misbehaving.py`) can be imported by its tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
