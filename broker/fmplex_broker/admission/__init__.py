"""What is refused before it is queued. Pure; both transports pass through here."""
