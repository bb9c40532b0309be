"""Shared parts of FMplex's roles: messages, specs, errors, admission and the broker protocol.

Everything at this level is pure (no I/O, no clock). Whatever talks to Redis lives in `fmplex_broker.streams`.
"""
