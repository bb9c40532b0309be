"""Where the fleet is: what a program would have in its settings. Runs where nothing of FMplex is installed."""

from __future__ import annotations

import os

import pytest

TOO_LONG = "the cat sat on the mat; " * 100  # for a model of 200 tokens


@pytest.fixture(scope="session")
def url() -> str:
    return os.environ["FMPLEX_URL"]


@pytest.fixture(scope="session")
def key() -> str:
    return os.environ["FMPLEX_KEY"]


@pytest.fixture(scope="session")
def too_long() -> str:
    """A text that has more tokens than the vFMs `short` and `short-vectors` take."""
    return TOO_LONG
