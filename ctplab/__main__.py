"""``python -m ctplab``."""

import sys

from ctplab.cli import main

if __name__ == "__main__":
    sys.exit(main())
