"""A restart without a gap: how a running server offers its socket, and how the next one takes it. Waits for nothing."""
