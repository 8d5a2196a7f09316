"""What a channel sends and takes: framed messages without calls, their values, and several of them at once."""
