"""For all tests."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Leave what the test files loaded out of every later search for garbage.

    That is 170,000 objects, and tests that make many of their own start hundreds of searches.
    """
    gc.collect()
    gc.freeze()
