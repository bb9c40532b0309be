"""The HTTP gateway, thin on purpose: authenticate, admit, enqueue, await the reply. No torch, no state worth keeping."""
