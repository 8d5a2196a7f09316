"""What hostline is measured with besides its peers: itself at each layer, bare sockets, C and Go.

Every module here has SUBJECTS; the plan finds them by looking into this package.
"""
