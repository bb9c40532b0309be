"""Offline batches: many inputs that a gateway keeps and a fleet answers from spare capacity, their sender being there or not."""
