"""`python -m hostline`, the same as the command `hostline`."""

from __future__ import annotations

import sys

from hostline.cli import main

if __name__ == "__main__":
    sys.exit(main())
