"""Backbones: what transformers loads, described by one row per family and run on packed rows."""
