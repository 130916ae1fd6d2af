"""The recipe of flowcut-mini, the small vision-language model that ships with flowcut.

Run ``python -m recipes.mini --help`` from the repository root; README.md in this folder explains the steps.
"""
