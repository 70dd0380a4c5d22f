"""What an engine may remember outside its context, on this machine."""

from __future__ import annotations

from gptoss.formats.gguf import GgufFile
from gptoss.runtime.engine.cache_folder import default_folder
from gptoss.runtime.engine.prefix_cache import CacheSettings
from gptoss.runtime.models.memory_plan import MemoryPlan


def cache_settings(model: GgufFile, plan: MemoryPlan, *, disk: bool) -> CacheSettings:
    """Give the prefix cache the memory that ``plan`` has for it, and the user's cache folder if
    ``disk``.
    """
    folder = default_folder() if disk else None
    return CacheSettings(plan.devices[0].cache, folder, model)
