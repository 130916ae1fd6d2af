"""LLaVA's benchmark files: question files in, the answer files that LLaVA's own evaluation scripts take out."""
