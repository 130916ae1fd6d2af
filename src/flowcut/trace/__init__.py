"""What happened in the last forward pass, and what was seen while nothing was cut."""

from .cache_state import CacheState
from .flow import ImageFlow, LanguageFlow, PlannedCut, TileFlow
from .images import ImageTrace, TileTrace
from .sequence import SequenceTrace, Stretch, Trace

__all__ = [
    "CacheState",
    "ImageFlow",
    "ImageTrace",
    "LanguageFlow",
    "PlannedCut",
    "SequenceTrace",
    "Stretch",
    "TileFlow",
    "TileTrace",
    "Trace",
]
