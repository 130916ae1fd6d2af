"""flowcut inside lmms-eval: models for that harness, rows of its runs, and the built-in tasks in its form.

lmms-eval is an extra (``pip install "flowcut[lmms-eval]"``); what needs it imports it when it is used.
"""
