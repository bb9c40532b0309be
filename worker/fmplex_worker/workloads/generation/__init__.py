"""What a generating job keeps from pass to pass, and what is done with its logits.

kv.py        keys and values: slabs, and the pool that they come from
arena.py     the memory of the pool
prefixes.py  finished prompts whose keys and values others may copy
job.py       one generating job as the scheduler sees it
pricing.py   what its pieces cost
row.py       its tokens, where it stands, what comes out
sampling.py  logits to tokens
spelling.py  what each token of a tokenizer adds to a text
texts.py     tokens to text, and where text stops
grammars.py  JSON schemas, compiled
schemas.py   JSON schemas as masks over the vocabulary
prompts.py   what a caller sends, as tokens
jail.py      a process for templates and schemas that may take all time and memory
jailed.py    what that process does
"""
