"""``python -m app``: the dashboard on localhost, on the embedded model or on folders of your own."""

import argparse
import os
import sys
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing leaves this machine

import gradio as gr

import ctplab as ctp
from app import compare, tokens
from ctplab.atlas.facts import data_dir
from ctplab.prompts.prefix import PAPER_HARD_PROMPT


def load(full: str, compressed: str, prompt: str) -> dict[str, Any]:
    """The models and the prompt that the tabs share; a wrong pair is refused in one line."""
    model, tokenizer = ctp.load(full)
    small, _ = ctp.load(compressed)
    saved = ctp.load_prompt(prompt)
    notes = ctp.attach(saved, small, tokenizer)
    return {
        "full": model,
        "compressed": small,
        "tokenizer": tokenizer,
        "soft": saved.prefix,
        "initial": saved.initial,
        "card": f"**{full}** against **{compressed.split('/')[-1]}**, prompt of {saved.prefix.k} tokens learned on "
        f"{saved.info.get('corpus', 'unknown text')}. " + " ".join(notes),
    }


def build(bench: dict[str, Any]) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title="ctplab") as page:
        gr.Markdown(f"# ctplab\n{bench['card']}")
        with gr.Tab("Compare"):
            compare.build(bench, PAPER_HARD_PROMPT)
        with gr.Tab("Prompt tokens"):
            tokens.build(bench)
    return page


def main() -> int:
    """Parse the options and serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m app", description=__doc__)
    parser.add_argument("--full", default="atlas")
    parser.add_argument("--compressed", default=str(data_dir() / "w2-g32"))
    parser.add_argument("--prompt", default=str(data_dir() / "prompt"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    try:
        page = build(load(options.full, options.compressed, options.prompt))
    except ctp.InputError as error:
        print(f"ctplab: {error}", file=sys.stderr)
        return 2
    page.queue(max_size=16).launch(server_name=options.host, server_port=options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
