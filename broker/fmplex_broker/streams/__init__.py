"""Everything that talks to Redis. No other package of FMplex imports `redis`."""
