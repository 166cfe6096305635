"""``python -m ctplab``."""

from ctplab.cli import entry

if __name__ == "__main__":
    entry()
