"""One script per claim. Each prints a table, or with `--json` one JSON object on stdout; see `benchmarks.harness`."""
