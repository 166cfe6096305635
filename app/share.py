"""What leaves the page: downloads made in the browser, and links that carry the settings."""

from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ctplab.app.bench import ARMS, PRIVATE

DOWNLOAD = """(file) => {
  if (!file || !file.name) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file.text], { type: file.type }));
  link.download = file.name;
  link.click();
}"""


def go_to(tab: str) -> str:
    """JavaScript that opens a tab, by its name, and shows its top."""
    return f"""() => {{
  const tab = [...document.querySelectorAll("#tabs button[role=tab]")].find((b) => b.innerText.trim() === "{tab}");
  if (tab) {{ tab.click(); window.scrollTo({{ top: 0 }}); }}
}}"""


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
}


def link_of(button: gr.Button, link: gr.Textbox, inputs: list[Any]) -> None:
    """Let ``button`` show a link to the settings ``inputs``: three names, the view, and those of :data:`LINK`."""

    def shared(full: str, compressed: str, prompt: str | None, view: str, *values: Any) -> Any:
        found = dict(zip(LINK, values, strict=True))
        found |= {"arms": ",".join(found["arms"]), "ask": int(found["ask"]), "raw": int(found["raw"])}
        found |= {"full": full, "compressed": compressed, "prompt": prompt or "", "view": view}
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
