"""Training with cutting: conversations from files, and ``transformers``' Trainer over them.

``config`` says what can be set, ``reading`` reads it, ``run`` puts the rest together, in the data's way: ``samples``,
``pictures``, ``conversation``, ``dataset``, ``sampling``, ``collating``, ``preparing`` (the model), ``trainer``.
"""
