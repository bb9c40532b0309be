"""Heads: how hidden states become what a task answers with."""
