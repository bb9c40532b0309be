"""The demo of encoders, `fmplex demo`: from labelled texts to mixed traffic on one shared encoder.

tasks.py    the vFMs and their texts (data/*.jsonl, written for FMplex)
scoring.py  held-out scores from what the fleet answered
traffic.py  mixed traffic, and bursts together against one task at a time
report.py   the tables
run.py      the demo from end to end
"""
