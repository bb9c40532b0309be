"""The engine: one physical FM on one device. It turns a planned pass into one run of the backbone.

engine.py     the engine, for any backbone and any workloads
opening.py    which workloads a backbone gets
isolation.py  what becomes of a pass that failed
"""
