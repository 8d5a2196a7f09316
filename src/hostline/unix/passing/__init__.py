"""What travels beside the bytes: descriptors, credentials, and who owns a descriptor that arrived."""
