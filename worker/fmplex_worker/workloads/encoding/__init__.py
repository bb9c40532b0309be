"""Whole texts, encoded once, for heads."""
