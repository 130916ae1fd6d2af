"""Pictures, figures and tables of what was cut and measured."""
