"""What the roles of FMplex share: messages, specs, errors, admission and the broker protocol.

Everything at this level is pure (no I/O, no clock). Whatever talks to Redis lives in `fmplex_broker.streams`.
"""
