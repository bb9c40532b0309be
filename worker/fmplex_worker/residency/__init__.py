"""Residency: the versions on the device, in host memory and on disk, as caches bounded in bytes and keyed by digest.

lru.py        least recently used by bytes, with pins; pure
cache.py      artifacts on this machine's disk
fetching.py   host memory → disk → artifact store; checks, and fits to the backbone
residents.py  the device: loads on demand off the step path, evicts, pins what runs
"""
