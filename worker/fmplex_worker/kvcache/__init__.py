"""Keys and values of sequences between passes (the KV cache).

arena.py         one stretch of memory
pool.py          slabs of it, one a sequence
prefix_cache.py  prompts that are kept, for others that begin alike
"""
