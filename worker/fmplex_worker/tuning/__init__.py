"""Training: `fit` in this process, `python -m fmplex_worker.tuning` as one that serves a stream of specs, and units for a worker.

There is one trainer: a run is a stream of units, whoever runs them. It can be cut anywhere and ends the same.

opening.py        from an order to a run; adapters.py what learns, and in how much room (room.py)
run.py            the run: its units, snapshots (state.py) and package
head_course.py    a head, alone (frozen.py) or with an adapter; what it is given: head_data.py, encoder.py, the task of its head:
                  tasks.py, linear_tasks.py, metric_tasks.py
decoder/          likewise for generated text: answer_course.py
descent.py        steps of an objective (objective.py; head_objective.py): optimizer.py, early.py
walk.py           the backbone layer by layer; learnt.py and fresh.py its adapter; units.py forward and backward in units
"""

from fmplex_worker.tuning.trainer import fit

__all__ = ["fit"]
