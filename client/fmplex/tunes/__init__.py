"""Tuning jobs: vFMs that the fleet trains beside what it serves."""
