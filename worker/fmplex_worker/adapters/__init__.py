"""Adapters: PEFT LoRA folders read as they are, and applied to slices of a packed row."""
