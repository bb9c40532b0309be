"""Training of models of text: small decoders from nothing, and LoRAs for decoders. `python -m fmplex_worker.tuning.decoder`
serves a stream of specs (`fmplex_broker.specs.fitting_text`).

tokenizer.py    a byte-level BPE tokenizer with a chat template
pretraining.py  a decoder from nothing: examples.py texts as tokens, loop.py steps, score, and answers while it learns
adapting.py     a LoRA or (IA)³, as the package of a generating vFM
answers.py      texts as tokens, as the vFM will be asked; answer_objective.py, answer_course.py what is learnt of them
"""
