"""Looking at a model at work, without cutting anything: what becomes a ``trace.ImageFlow``."""
