"""Exit codes of our own, beside pytest's 0 to 6."""

from __future__ import annotations

from typing import Final

__all__ = ["DETACHED", "INFRASTRUCTURE"]

INFRASTRUCTURE: Final = 20
"""At least one run was lost to the machinery; wins over failed tests."""
DETACHED: Final = 21
"""The session left before its jobs ended; they live on."""
