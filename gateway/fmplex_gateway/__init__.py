"""The thin HTTP front: authenticate, admit, enqueue, await the reply. No torch, no state worth keeping."""
