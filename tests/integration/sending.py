"""Requests by hand, and what a refusal looks like."""

from __future__ import annotations

import json
from typing import Any

import httpx

from fmplex_broker.wire.messages import packb


def refused(response: httpx.Response, status: int, code: str, field: str | None, says: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"], error.get("field")) == (status, code, field), error
    assert says in error["message"], error
    assert len(error["message"]) < 500, "an error is a sentence, not an echo of the input"


def send(http: httpx.Client, path: str, body: Any) -> httpx.Response:
    """As JSON where JSON can say it, else as msgpack."""
    try:
        content, kind = json.dumps(body).encode(), "application/json"
    except TypeError:
        content, kind = packb(body), "application/msgpack"
    return http.post(path, content=content, headers={"Content-Type": kind})
