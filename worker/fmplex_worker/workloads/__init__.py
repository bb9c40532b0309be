"""Kinds of work that share an engine's passes: each prepares its jobs, lays out its part of a pass and reads its result.

base.py      the protocol of a workload
encoding/    texts that are encoded once, for heads
generation/  texts that are generated, a token a pass
"""
