"""How long the stress tests run: ``GPTOSS_STRESS=100`` makes them a hundred times as long."""

from __future__ import annotations

import os

LONGER = float(os.environ.get("GPTOSS_STRESS", "1"))


def scaled(n: int) -> int:
    """``n`` in an ordinary run, more in a longer one."""
    return max(1, int(n * LONGER))
