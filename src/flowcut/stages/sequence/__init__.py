"""The gate in front of the language model: where cut tokens leave the prompt."""
