"""The cut inside the language model."""
