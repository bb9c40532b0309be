"""Versions: which artifact a vFM serves, and on which weights. Pure.

A version is written `ARTIFACT-FINGERPRINT`: the digest of the package, and the fingerprint of the backbone for which it was
deployed. The same package on other weights is another version, and whoever holds a version knows both without asking anybody.
"""

from __future__ import annotations

from fmplex_broker.errors import StaleVersion


def version_of(artifact: str, fingerprint: str) -> str:
    """Return the version of an artifact on the backbone of a fingerprint."""
    return f"{artifact}-{fingerprint}"


def artifact_of(version: str) -> str:
    """Return the digest of the artifact of a version."""
    return version.partition("-")[0]


def fingerprint_of(version: str) -> str:
    """Return the fingerprint for which a version was deployed; empty if it names none."""
    return version.partition("-")[2]


def is_stale(version: str, hosted: str) -> bool:
    """Tell whether a version was deployed for another fingerprint than the one that is `hosted` (empty: nobody knows)."""
    made_for = fingerprint_of(version)
    return bool(made_for and hosted and made_for != hosted)


def stale_error(vfm: str, version: str, hosted: str) -> StaleVersion:
    """Return the error of a call of a vFM whose version is stale."""
    return StaleVersion(
        f"vFM {vfm!r} was made for weights {fingerprint_of(version)}, the fleet hosts {hosted}; deploy it again"
    )
