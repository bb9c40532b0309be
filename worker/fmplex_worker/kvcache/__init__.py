"""Keys and values of texts that grow: an arena, a pool of slabs, the cache of prefixes."""
