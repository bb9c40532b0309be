"""Kinds of work that share an engine's passes: each prepares its jobs, lays out its part of a pass and reads its result."""
