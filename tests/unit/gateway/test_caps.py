"""What callers are told over HTTP when there is no room for their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.specs.vfm import VfmChange
from tests.unit.gateway.site import EMBEDDING, Site, site, spec


async def served(place: Site, **limits: Any) -> None:
    """Serve the vFM `v` with these limits, as an update of it would."""
    one = spec("v", **EMBEDDING, limits=limits)
    await place.serve(one)
    await place.queue.registry.change("v", VfmChange(limits=one.limits))


async def asked(place: Site, *texts: str) -> tuple[int, dict[str, Any], str | None]:
    """Send texts that nobody will answer within 50 ms; return status, error and Retry-After."""
    got = await place.ask("POST", "/v1/vfms/v/infer", body={"inputs": list(texts), "timeout_ms": 50})
    return got.status_code, got.json()["error"], got.headers.get("retry-after")


async def test_a_call_over_its_cap_is_413(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await served(place, max_call_bytes=20_000)
        status, error, _ = await asked(place, *["x" * 6_000] * 4)
        assert status == 413
        assert "limits.max_call_bytes" in error["message"]


async def test_a_call_that_never_fits_is_413_and_one_that_does_not_fit_now_is_429(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await served(place, max_pending_bytes=20_000)
        status, error, _ = await asked(place, *["x" * 6_000] * 4)
        assert (status, "limits.max_pending_bytes" in error["message"]) == (413, True)
        [pending] = await place.queue.submit("v", ["y" * 15_000])
        status, error, after = await asked(place, "x" * 6_000)
        assert (status, error["code"]) == (429, "queue_full")
        assert "limits.max_pending_bytes of 'v'" in error["message"]
        assert int(after or 0) >= 1
        await pending.cancel()
        assert (await asked(place, "x" * 6_000))[0] == 504


async def test_the_cap_of_a_backbone_is_told(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await served(place)
        await place.queue.redis.hset("{minilm}:vfms", ":max_bytes", 10_000)
        status, error, _ = await asked(place, "x" * 11_000)
        assert (status, "of its backbone" in error["message"]) == (413, True)
        await place.queue.submit("v", ["y" * 8_000])
        status, error, _ = await asked(place, "x" * 6_000)
        assert (status, "of its backbone" in error["message"]) == (429, True)


@pytest.mark.parametrize("rate", [1e-300, 1e-9, 1e300])
async def test_a_rate_that_nobody_can_mean_is_refused(tmp_path: Path, rate: float) -> None:
    async with site(tmp_path) as place:
        await served(place)
        got = await place.ask("PATCH", "/v1/vfms/v", body={"limits": {"rate": rate}})
        assert got.status_code == 422
        assert got.json()["error"]["param"] == "limits.rate"
