"""Seeing and replacing what a model computes, on one instance, and undoing it."""
