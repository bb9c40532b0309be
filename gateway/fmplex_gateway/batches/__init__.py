"""Offline batches: files of calls that are answered with whatever capacity is to spare."""
