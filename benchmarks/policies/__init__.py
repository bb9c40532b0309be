"""Other ways to decide who gets into the next pass, to compare with: not part of the product.

queues.py   what they share: a queue a flow, arrival order within it
tags.py     start-time fair queueing: one job at a time (`stfq`), and in passes that every participant pays whole (`bfq`)
turns.py    round robin, and virtual token counters (`vtc`)
serve.py    the product's worker with one of them in place of its own scheduler
"""

from __future__ import annotations

from benchmarks.policies.queues import Queues
from benchmarks.policies.tags import Bfq, Stfq
from benchmarks.policies.turns import RoundRobin, TokenCounters

POLICIES: dict[str, type[Queues]] = {"rr": RoundRobin, "stfq": Stfq, "bfq": Bfq, "vtc": TokenCounters}
