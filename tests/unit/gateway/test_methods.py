"""405 says what the path has: on all of its routes, not on the one that was looked at first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.gateway.site import site

ALLOWED = {
    "/v1/vfms": {"GET", "POST"},
    "/v1/vfms/v": {"GET", "PATCH", "DELETE"},
    "/v1/vfms/v/infer": {"POST"},
    "/v1/vfms/v/versions": {"POST"},
    "/v1/models": {"GET"},
    "/v1/chat/completions": {"POST"},
    "/v1/embeddings": {"POST"},
    "/healthz": {"GET"},
    "/metrics": {"GET"},
    "/docs": {"GET", "HEAD"},
}


@pytest.mark.parametrize("path", ALLOWED)
async def test_a_method_that_a_path_lacks_is_405_with_those_that_it_has(tmp_path: Path, path: str) -> None:
    async with site(tmp_path) as place:
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} - ALLOWED[path]:
            got = await place.ask(method, path)
            assert (got.status_code, got.json()["error"]["code"]) == (405, "wrong_method"), method
            assert {name.strip() for name in got.headers["allow"].split(",")} == ALLOWED[path]
            assert all(name in got.json()["error"]["message"] for name in ALLOWED[path])


async def test_a_path_that_is_not_there_allows_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        got = await place.ask("GET", "/v1/nothing")
    assert (got.status_code, "allow" in got.headers) == (404, False)
