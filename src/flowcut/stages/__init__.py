"""Where a cut happens. The stages do the cutting and know nothing of any method."""
