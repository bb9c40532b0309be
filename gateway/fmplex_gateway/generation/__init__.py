"""Text generation in OpenAI's shapes: chat and completions, whole or as it comes.

fields.py      fields of the bodies: what is accepted, and what is refused by name
bodies.py      the bodies, and their parameters for a generating vFM
text_calls.py  a call as jobs: `n` of them a prompt; errors with the caller's field names
shapes.py      texts as OpenAI's objects
routes.py      the endpoints
metrics.py     metrics of generated text
"""
