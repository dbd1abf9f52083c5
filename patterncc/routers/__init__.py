"""Attention whose edges are chosen by content while a model runs: routers and the module."""

from patterncc.routers.kinds import NearestKeys, SphericalKMeans, TopBlocks
from patterncc.routers.module import RoutedAttention
from patterncc.routers.tracing import Trace, trace

__all__ = ["NearestKeys", "RoutedAttention", "SphericalKMeans", "TopBlocks", "Trace", "trace"]
