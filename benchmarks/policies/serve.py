"""`python -m benchmarks.policies.serve --policy NAME --config FLEET.toml --broker URL`: one worker with another policy."""

from __future__ import annotations

import argparse
import sys

from benchmarks.policies import POLICIES
from fmplex_worker import __main__ as worker
from fmplex_worker.host import service

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", choices=POLICIES, required=True)
    given, rest = parser.parse_known_args()
    service.make_scheduler = lambda _name, cost, budget, **_: POLICIES[given.policy](cost, budget)  # type: ignore[attr-defined]
    sys.argv[1:] = rest
    sys.exit(worker.main())
