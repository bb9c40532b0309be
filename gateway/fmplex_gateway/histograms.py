"""Histograms as workers count them, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from fmplex_broker.wire.stats import bucket_top

_BOUNDS = range(0, 85, 4)  # 0.1 ms to 210 s in powers of two: the same for every vFM, so that they can be added up


def buckets(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    """Return (upper bound in seconds, cumulative count) a bucket, as Prometheus wants them."""
    below = {bound: sum(n for bucket, n in counts.items() if bucket <= bound) for bound in _BOUNDS}
    total = sum(counts.values())
    return [*((f"{bucket_top(b) / 1000:.6g}", float(n)) for b, n in below.items()), ("+Inf", float(total))]
