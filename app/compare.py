"""Tab *Compare*: one question, the four arms' answers streaming side by side."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

import ctplab as ctp
from ctplab.atlas.questions import all_questions, is_correct

EXAMPLES = ["Where is Long Beach?", "Where is Tulsa?", "What is asparagus?", "What is the capital of Peru?"]
ARMS = ("full", "compressed", "hard", "soft")


def _verdict(question: str, answer: str) -> str:
    """Right or wrong, where the embedded world knows the answer."""
    known = [q for q in all_questions() if question.strip() in q.asked]
    if not known:
        return ""
    return "  ✓ correct" if any(is_correct(answer, q) for q in known) else f"  ✗ (known answer: {known[0].answer})"


def answer(bench: dict[str, Any], question: str, hard_prompt: str, length: int) -> Iterator[list[str]]:
    """The answers so far, one string an arm; all arms advance together."""
    if not question.strip():
        raise gr.Error("Type a question first.")
    small, tokenizer = bench["compressed"], bench["tokenizer"]
    try:
        hard = ctp.hard_prompt(small, tokenizer, hard_prompt)
        arms = ctp.arms(bench["full"], small, hard, bench["soft"])
        text = f"Q: {question.strip()}\nA:"
        streams = [ctp.stream(arm, tokenizer, text, max_new_tokens=int(length)) for arm in arms]
    except ctp.InputError as error:
        raise gr.Error(str(error)) from error
    texts, running = [""] * len(arms), set(range(len(arms)))
    try:
        while running:
            for i in sorted(running):
                piece = next(streams[i], None)
                texts[i] += piece or ""
                if piece is None or "\n" in texts[i].strip():
                    streams[i].close()
                    running.discard(i)
            yield [t.strip().split("\n")[0] for t in texts]
    except ctp.InputError as error:
        raise gr.Error(str(error)) from error
    finally:
        for stream in streams:  # Stop, or a closed page: the models stop as well
            stream.close()
    lines = [t.strip().split("\n")[0] for t in texts]
    yield [line + _verdict(question, line) for line in lines]


def build(bench: dict[str, Any], default_hard: str) -> None:
    """Lay the tab out inside the current ``gr.Blocks``."""
    with gr.Row():
        question = gr.Textbox(EXAMPLES[0], label="Question", elem_id="question", scale=4)
        length = gr.Slider(4, 64, 24, step=4, label="Longest answer (tokens)", scale=1)
    hard = gr.Textbox(default_hard, label="Hard prompt (edit it)", lines=2, elem_id="hard-prompt")
    with gr.Row():
        go = gr.Button("Generate", variant="primary", elem_id="generate")
        stop = gr.Button("Stop", elem_id="stop")
    with gr.Row():
        boxes = [gr.Textbox(label=name, lines=4, interactive=False, elem_id=f"answer-{name}") for name in ARMS]
    gr.Examples(EXAMPLES, question)

    def run(question: str, hard_prompt: str, length: int) -> Iterator[list[str]]:
        yield from answer(bench, question, hard_prompt, length)

    events = [
        trigger(run, [question, hard, length], boxes, api_name=name, concurrency_id="model", concurrency_limit=1)
        for trigger, name in ((go.click, "compare"), (question.submit, None))
    ]
    stop.click(None, cancels=events)
