"""The demo of generated text, `fmplex demo --generation`: one small decoder and several voices for it, trained on Python's own
documentation, then streaming side by side.

texts.py      questions and answers, from the documentation that ships with Python
voices.py     the vFMs: how each rewrites the documentation
recipe.py     how decoder and voices are trained, in full and quickly, and where they are kept
training.py   the training processes, and what is drawn while they run
answers.py    the texts as they come, in columns or as lines
measuring.py  the same texts together and one after the other; memory
report.py     the figures, as tables and as JSON
run.py        the demo from end to end
"""
