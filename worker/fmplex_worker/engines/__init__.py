"""Engines: what turns a plan into one run of the backbone. `protocol` is all that the rest of the worker knows of them."""
