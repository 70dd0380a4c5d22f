"""What an engine may remember outside its context, on this machine."""

from __future__ import annotations

from gptoss.formats.gguf import GgufFile
from gptoss.runtime.engine.cache_folder import default_folder
from gptoss.runtime.engine.prefix_cache import CacheSettings
from gptoss.runtime.models.memory import available_memory

MOST = 1 << 30
"""Bytes of memory for states that are not in the context."""


def cache_settings(model: GgufFile, *, disk: bool) -> CacheSettings:
    """Give the prefix cache an eighth of the memory that will be available once the GGUF ``model``
    is loaded, at most 1 GiB; and the user's cache folder if ``disk``.
    """
    spare = available_memory().available - model.path.stat().st_size
    memory = min(max(spare // 8, 0), MOST)
    return CacheSettings(memory, default_folder() if disk else None, model)
