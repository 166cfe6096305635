"""``python -m app`` is ``ctplab app``."""

import sys

from ctplab.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
