"""The dashboard: Gradio tabs over ctplab, one file a tab. No file of it imports torch or computes a number itself.

An installation has the other modules beside this file. In a checkout they lie in its folder ``app/``, so that the
page and its style are found beside ``README.md`` and not inside the library.
"""

from pathlib import Path

_here = Path(__file__).parent
if not (_here / "server.py").is_file():
    __path__.append(str(_here.parents[1] / "app"))
