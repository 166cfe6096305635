"""What leaves the page: downloads made in the browser, and links that carry the settings."""

from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ctplab.app.bench import ARMS, PRIVATE
from ctplab.app.views import VIEWS
from ctplab.text.reading import STARTS

DOWNLOAD = """(file) => {
  if (!file || !file.name) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file.text], { type: file.type }));
  link.download = file.name;
  link.click();
}"""


SHOW_TAB = "(tab) => { if (tab) { sessionStorage.setItem('ctplab-tab', tab); window.scrollTo({ top: 0 }); } }"


def lead(event: Any, tabs: gr.Tabs | None, tab: str) -> None:
    """Open the tab with the id ``tab`` once ``event`` has succeeded, and show its top."""
    event.success(lambda: gr.Tabs(selected=tab), None, tabs, queue=False, show_progress="hidden", **PRIVATE).then(
        None, None, None, js=f"() => ({SHOW_TAB})('{tab}')", **PRIVATE
    )


def download(button: gr.Button, write: Any, inputs: list[Any]) -> None:
    """Let ``button`` save what ``write(*inputs)`` returns: {"name", "type", "text"}. The server keeps no file."""
    file = gr.JSON(visible="hidden")
    button.click(write, inputs, file, show_progress="hidden", **PRIVATE).success(None, file, js=DOWNLOAD, **PRIVATE)


#: Settings of a shared link, in the order of the components that ``compare.build`` returns, and how each is read.
LINK = {
    "q": str,
    "arms": lambda text: [arm for arm in text.split(",") if arm in ARMS],
    "hard": str,
    "ask": lambda text: text == "1",
    "temperature": float,
    "top_p": float,
    "penalty": float,
    "seed": int,
    "length": int,
    "raw": lambda text: text == "1",
    "start": lambda text: text if text in STARTS else int(""),  # a ValueError leaves what is there
    "view": lambda text: text if text in VIEWS else int(""),
}
#: A link that asks for it is run as soon as its settings are restored.
RUN = """() => new URLSearchParams(location.search).get("run") === "1"
  && setTimeout(() => document.querySelector("#generate")?.click(), 600)"""


def link_of(button: gr.Button, link: gr.Textbox, inputs: list[Any]) -> None:
    """Let ``button`` show a link to the settings ``inputs``: three names, and those of :data:`LINK`."""

    def shared(full: str, compressed: str, prompt: str | None, *values: Any) -> Any:
        found = dict(zip(LINK, values, strict=True))
        found |= {"arms": ",".join(found["arms"]), "ask": int(found["ask"]), "raw": int(found["raw"])}
        found |= {"full": full, "compressed": compressed, "prompt": prompt or "", "run": 1}
        return gr.update(value="?" + urlencode(found), visible=True)

    button.click(shared, inputs, link, queue=False, **PRIVATE).then(
        None, link, link, js="(query) => location.origin + location.pathname + query", **PRIVATE
    )


def restore(query: dict[str, str]) -> list[Any]:
    """The settings that a shared link names; all others, and senseless values, leave what the page shows."""
    found = []
    for name, read in LINK.items():
        try:
            found.append(read(query[name]) if name in query else gr.skip())
        except ValueError:
            found.append(gr.skip())
    return found
