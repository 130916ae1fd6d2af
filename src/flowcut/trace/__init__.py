"""What happened in the last forward pass."""

from .images import ImageTrace, TileTrace
from .sequence import CacheState, SequenceTrace, Stretch, Trace

__all__ = ["CacheState", "ImageTrace", "SequenceTrace", "Stretch", "TileTrace", "Trace"]
