"""What a KV cache must hold: which query reads each key last, and what may be evicted when."""

from patterncc.cache.plan import CachePlan, LayerCache, cache_plan
from patterncc.cache.spans import Spans

__all__ = ["CachePlan", "LayerCache", "Spans", "cache_plan"]
