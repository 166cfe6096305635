"""A figure that follows controls in JupyterLab, and is a plain picture everywhere else.

One output carries both. JupyterLab with a running kernel shows the controls; a code host, an HTML page or a notebook
that was only opened shows the picture of the starting values, and so does Jupyter without ipywidgets.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from inspect import signature
from io import BytesIO
from typing import Any

from ctplab.errors import InputError

Draw = Callable[..., tuple[Any, str]]
"""One keyword a control, with its starting value -> a matplotlib figure, and text to stand under it."""

WIDGET = "application/vnd.jupyter.widget-view+json"


def png(figure: Any) -> bytes:
    """A matplotlib figure as a picture."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _control(widgets: Any, name: str, choices: Sequence[Any], value: Any) -> Any:
    """Words or yes and no are chosen from a list, numbers on a slider."""
    words = any(isinstance(choice, str | bool) for choice in choices[1:])
    options = [(str(choice), choice) for choice in choices]
    if words:
        return widgets.Dropdown(options=options, value=value, description=name)
    return widgets.SelectionSlider(options=options, value=value, description=name, continuous_update=False)


class Explorer:
    """``draw`` at its defaults, and again whenever a control of ``choices`` moves. The last line of a cell shows it.

    What ``draw`` refuses (InputError) is said under the picture, which stays as it was.
    """

    def __init__(self, draw: Draw, **choices: Sequence[Any]) -> None:
        self._draw = draw
        figure, self.text = draw()
        self.picture = png(figure)
        self.controls: dict[str, Any] = {}
        self._box: Any = None
        try:
            import ipywidgets as widgets
        except ImportError:
            return
        defaults = {name: parameter.default for name, parameter in signature(draw).parameters.items()}
        for name, values in choices.items():
            self.controls[name] = _control(widgets, name, values, defaults[name])
            self.controls[name].observe(self._redraw, names="value")
        layout = {"max_width": "100%", "width": "max-content"}
        self._image = widgets.Image(value=self.picture, format="png", layout=layout)
        self._note = widgets.HTML(self._as_html())
        row = widgets.HBox(list(self.controls.values()), layout={"flex_flow": "row wrap"})
        self._box = widgets.VBox([row, self._image, self._note])

    def _redraw(self, change: Any) -> None:
        self._note.value = "<pre>...</pre>"
        try:
            figure, self.text = self._draw(**{name: control.value for name, control in self.controls.items()})
            self.picture = png(figure)
        except InputError as error:
            self.text = str(error)
        self._image.value, self._note.value = self.picture, self._as_html()

    def _as_html(self) -> str:
        return f"<pre>{escape(self.text)}</pre>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle = {"image/png": b64encode(self.picture).decode(), "text/plain": self.text}
        return bundle if self._box is None else {WIDGET: self._box._repr_mimebundle_()[WIDGET], **bundle}
