"""Checkpoints in other formats, read into Hugging Face classes."""

from .llava import load_llava

__all__ = ["load_llava"]
