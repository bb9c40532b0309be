"""Specifications that people write down: vFMs, fleets, heads, parameters, trainings; and deployments as values. Pydantic,
immutable."""
