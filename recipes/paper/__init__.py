"""The paper's tables (arXiv 2505.19536) as commands: published figures beside those that a run here gives."""
