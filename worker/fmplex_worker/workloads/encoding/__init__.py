"""The workload of whole texts, encoded once, for heads.

workload.py   the workload, as the engine sees it
preparing.py  requests to jobs
inputs.py     the forms of an input and the parameters of a call
"""
