"""The worker's host side, without torch: leases, claims, the state of every job, passes, replies.

service.py           the worker: one engine, and one life after another in front of it
life.py              one incarnation: a lease, and the tasks that serve under it
job_state.py         the states of a job, and which may follow which
active_job.py        one job in hand
jobs.py              all of them; the only writer of states
claim_room.py        how much more may be claimed
deadlines.py         deadlines, soonest first
dispatch.py          every step of a job's life: from state to state
quarantine.py        redelivered jobs, one at a time beside others
intake.py            the way in: claim_pacing.py (when), claiming.py (claims), version_waiting.py, preparation.py
pass_loop.py         the device task: planning.py, device_thread.py, flight.py, passes.py (progress), landing.py
deadline_guard.py    jobs without hope are answered, not run
training_turn.py     between passes: units of training; demand.py (what is due), training_job.py, training_books.py
blame.py             whom to blame if the worker dies now
outbox.py            the way out: replies; streaming.py (chunks of growing texts)
lease.py             beats, and taking over from those who stopped; clock.py (the server's time)
deployments.py       votes on offered versions
listening.py         what the broker says between claims
reporting.py         what the worker tells of itself: stats.py, tracing.py; residency_hint.py, budget_setting.py
profile.py           a short profile at start
"""
