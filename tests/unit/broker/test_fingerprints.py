"""Fingerprints and versions as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.specs.fingerprint import Fingerprint, refusal
from fmplex_broker.specs.versions import artifact_of, fingerprint_of, is_stale, version_of
from tests.support.hosting import HOSTED, OTHER

hexadecimal = st.text("0123456789abcdef", min_size=1, max_size=16)


@pytest.mark.parametrize("part", ["config", "weights", "tokenizer", "dtype", "revision"])
def test_whatever_decides_outputs_decides_the_digest(part: str) -> None:
    other = HOSTED.model_copy(update={part: "other"})
    assert other.digest != HOSTED.digest
    assert HOSTED.differences(other) == [part]


@pytest.mark.parametrize("part", ["model", "device"])
def test_where_it_lies_and_runs_decides_nothing(part: str) -> None:
    assert HOSTED.model_copy(update={part: "other"}).digest == HOSTED.digest


def test_parts_do_not_run_into_each_other() -> None:
    one, other = (
        Fingerprint(model="m", config=c, weights=w, tokenizer="t", dtype="d") for c, w in (("ab", "c"), ("a", "bc"))
    )
    assert one.digest != other.digest


def test_only_a_dtype_that_differs_is_a_matter_of_the_setting() -> None:
    both = HOSTED.model_copy(update={"dtype": "bfloat16", "weights": "w9"})
    assert "set dtype" in refusal("b", HOSTED.model_copy(update={"dtype": "bfloat16"}), HOSTED).message
    assert "set dtype" not in refusal("b", both, HOSTED).message


@given(hexadecimal, hexadecimal)
def test_a_version_says_its_artifact_and_its_fingerprint(artifact: str, fingerprint: str) -> None:
    version = version_of(artifact, fingerprint)
    assert (artifact_of(version), fingerprint_of(version)) == (artifact, fingerprint)
    assert not is_stale(version, fingerprint)
    assert is_stale(version, fingerprint + "0")
    assert not is_stale(version, "")  # nobody has said what is hosted


def test_the_digest_is_stable() -> None:
    """It is part of every version: another way to compute it would make all that is deployed stale."""
    assert (len(HOSTED.digest), HOSTED.digest) == (12, "86d3acc59c78")
    assert OTHER.digest != HOSTED.digest
