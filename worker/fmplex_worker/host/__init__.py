"""The worker's host side, without torch: leases, claims, the state of every job, passes, replies."""
