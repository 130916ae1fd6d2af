"""What happened in the last forward pass."""

from .cache_state import CacheState
from .images import ImageTrace, TileTrace
from .sequence import SequenceTrace, Stretch, Trace

__all__ = ["CacheState", "ImageTrace", "SequenceTrace", "Stretch", "TileTrace", "Trace"]
