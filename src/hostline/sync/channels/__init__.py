"""Channels: framed messages without calls, and how they are opened."""
