"""From scenes through a backbone into a cache: `cache_activations` and what it is made of."""

from bindkit.extraction.caching import cache_activations, cache_path
from bindkit.extraction.comparing import Deviation, compare_with_model
from bindkit.extraction.drawing import draw_patches
from bindkit.extraction.sizing import estimate_bytes

__all__ = ["Deviation", "cache_activations", "cache_path", "compare_with_model", "draw_patches", "estimate_bytes"]
