"""A page in the browser: ask a model about a picture or a clip, uncut and cut, and look at what was cut."""
