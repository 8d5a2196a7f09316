"""What bounds one server's peers: accounts of users, buffers that are mapped, watches over slow and silent ones."""
