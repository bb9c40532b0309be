"""The workload of generated texts: what a job keeps from pass to pass, and what is done with its logits.

workload.py       the workload, as the engine sees it
job.py            one job, as the scheduler sees it, and how it is made from a request
sequence.py       its tokens, how far they are computed, what has come out
pricing.py        what its pieces cost
prompts.py        what a caller sends, as tokens
sampling.py       logits to tokens
token_bytes.py    what each token of a tokenizer adds to a text
detokenizer.py    tokens to text, and where text stops
grammars.py       JSON schemas, compiled
constraints.py    JSON schemas as masks over the vocabulary
sandbox.py        a process for templates and schemas that may take all time and memory
sandbox_child.py  what that process does
"""
