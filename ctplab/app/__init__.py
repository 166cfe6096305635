"""The dashboard: Gradio tabs over ctplab, one file a tab. No mathematics there, no torch.

Its modules lie in the folder ``app/`` of the repository; an installation has them beside this file.
"""

from pathlib import Path

_checkout = Path(__file__).parents[2] / "app"
if (_checkout / "server.py").is_file():
    __path__.append(str(_checkout))
