"""The demo of fine-tuning beside inference, `fmplex demo --tuning`: a vFM improves, and its neighbours notice nothing.

recipe.py     who is trained, who lives beside it, and how much is asked
watching.py   the neighbours' traffic, and the held-out score of what serves, on one clock
improving.py  the tuning job, and its checkpoints as versions
report.py     the tables
curves.py     from what was seen to two curves; pure
drawing.py    the curves, as a picture and as a page
run.py        the demo from end to end
"""
