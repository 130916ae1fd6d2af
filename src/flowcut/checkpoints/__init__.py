"""Checkpoints in other formats, read into Hugging Face classes, and the model that ships with flowcut."""

from .llava import load_llava
from .mini import load_mini

__all__ = ["load_llava", "load_mini"]
