"""The cut behind the projector, and what leaves it."""
