"""The cut inside the vision tower."""
