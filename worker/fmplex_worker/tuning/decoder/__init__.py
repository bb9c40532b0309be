"""Training of models of text: small decoders from nothing, and LoRAs for decoders. `python -m fmplex_worker.tuning.decoder`
serves a stream of specs (`fmplex_broker.specs.fitting_text`).

texts.py        the file of texts
tokenizer.py    a byte-level BPE tokenizer with a chat template
examples.py     texts as tokens, batches of like lengths
loop.py         the steps, the score, and answers while it learns
pretraining.py  a decoder from nothing
adapting.py     a LoRA, as the package of a generating vFM
"""
