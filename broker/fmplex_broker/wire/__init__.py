"""Values that travel: jobs, replies, chunks of texts, tensors, statistics and pass records, as msgpack. Pure values."""
