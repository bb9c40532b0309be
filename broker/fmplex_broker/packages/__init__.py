"""vFM packages: reading, checking (PEFT included), archives, the artifact store, writing."""
