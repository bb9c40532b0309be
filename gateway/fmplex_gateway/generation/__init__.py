"""Text in OpenAI's shapes: chat and completions, whole or as it comes.

bodies.py   what a caller may send, and what it means to a generating vFM
asking.py   a call as jobs: `n` of them a prompt, and errors in the caller's words
shapes.py   texts as OpenAI's objects
routes.py   the endpoints
metrics.py  what /metrics tells of generated text
"""
