"""Zones: exact edge sets as unions of boxes cut by diagonal bands, and their algebra."""

from patterncc.zones.algebra import MAX_ZONES
from patterncc.zones.zoneset import Frame, ZoneSet

__all__ = ["MAX_ZONES", "Frame", "ZoneSet"]
