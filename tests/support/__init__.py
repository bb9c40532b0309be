"""What several suites share: waiting, fleet files, processes, packages, tiny models."""
