"""Checks of a call before it is queued. Pure; both transports pass through here."""
