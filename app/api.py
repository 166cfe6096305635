"""The endpoints ``/compare``, ``/lens``, ``/questions`` and ``/train`` for programs (``gradio_client``)."""

import time
from collections.abc import Iterator
from threading import Event

import gradio as gr
from gradio import events

import ctplab as ctp
from ctplab.app import asked, jobs, learner
from ctplab.app.answers import Request, answer
from ctplab.app.bench import DEVICE, LONG, Bench
from ctplab.app.closer import look
from ctplab.app.guard import owner
from ctplab.app.suited import suited
from ctplab.app.toast import plain_errors
from ctplab.formats.tuned import SOFT
from ctplab.prompts.arms import USUAL
from ctplab.prompts.prefix import PAPER_HARD_PROMPT

EVERY = 0.5  # seconds between two looks at a job


def build(bench: Bench) -> None:
    """Add the endpoints to the current ``gr.Blocks``."""

    def compare(
        question: str,
        arms: list[str] = list(USUAL),  # noqa: B006 (gradio reads the default from here)
        hard_prompt: str = PAPER_HARD_PROMPT,
        max_new_tokens: int = 24,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        ask: bool = True,
        full: str = "",
        compressed: str = "",
        prompt: str = "",
        raw: bool = False,
        start: str = "auto",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[list[dict]]:
        """All arms' answers in lockstep: a list of records, again and again until complete."""
        stop = bench.begin(f"api {request.session_hash}")
        with plain_errors():
            chosen = bench.chosen(full, compressed, prompt)
            sampling = (temperature, top_p, repetition_penalty, seed, max_new_tokens)
            wanted = Request(question, tuple(arms), hard_prompt, ask, *sampling, raw, start)
            yield from answer(bench, chosen, wanted, stop, period=0.0)

    def lens(
        text: str,
        arms: list[str] = list(USUAL),  # noqa: B006
        hard_prompt: str = PAPER_HARD_PROMPT,
        top: int = 10,
        seed: int = 0,
        full: str = "",
        compressed: str = "",
        prompt: str = "",
        start: str = "auto",
    ) -> dict:
        """Surprisal, KL to the full model and the likeliest alternatives of every token of ``text``, arm by arm."""
        with plain_errors():
            return look(bench, bench.chosen(full, compressed, prompt), tuple(arms), hard_prompt, seed, text, top, start)

    def questions(
        questions: str = "",
        limit: int = 100,
        arms: list[str] = list(USUAL),  # noqa: B006
        hard_prompt: str = PAPER_HARD_PROMPT,
        max_new_tokens: int = 24,
        seed: int = 0,
        full: str = "",
        compressed: str = "",
        prompt: str = "",
        raw: bool = False,
        start: str = "auto",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[dict]:
        """Many questions: a list (a line each, CSV or JSONL), ``atlas`` or ``task:NAME``. Rows and counts so far."""
        stop: Event = bench.begin(f"api {request.session_hash}")
        with plain_errors():
            chosen = bench.chosen(full, compressed, prompt)
            wanted = asked.Wanted(
                questions or "atlas", limit, tuple(arms), hard_prompt, max_new_tokens, raw, seed, start
            )
            yield from asked.answers(bench, chosen, wanted, stop)

    def train(
        what: list[str] = [SOFT],  # noqa: B006
        name: str = "",
        corpus: str = "",
        tokens: int = 32,
        steps: int | None = None,
        batch: int | None = None,
        seq_len: int | None = None,
        lr: float | None = None,
        kl: float | None = None,
        init: str = "vocab-random",
        every: int | None = None,
        rank: int = 8,
        seed: int = 0,
        full: str = "",
        compressed: str = "",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[dict]:
        """Learn ``soft`` (a prompt), ``scales``, ``norms``, ``low-rank``, ``codes``, or several: where the job is.

        What is not given is what suits the full model. A client that cancels stops it, and the best is kept.
        """
        with plain_errors():
            chosen = bench.chosen(full, compressed)
            usual = suited(bench, chosen.full)
            given = {"batch": batch, "seq_len": seq_len, "kl": kl, "every": every, "steps": steps}
            rest = {key: getattr(usual, key) if value is None else value for key, value in given.items()}
            rate = usual.rate(what) if lr is None else lr
            wanted = learner.wanted_of(
                what, rank, corpus or usual.corpus, tokens=tokens, lr=rate, init=init, seed=seed, **rest
            )
            name = name or learner.suggested(wanted.short, wanted.corpus)
            job = learner.begin(bench, chosen, name, wanted, owner(request))
            try:
                while job.active:
                    yield job.record()
                    time.sleep(EVERY)
            finally:
                job.cancel.set()
            if job.state != "done":
                raise ctp.InputError(job.note)
            yield job.record()

    events.api(compare, api_name="compare", **DEVICE)
    events.api(lens, api_name="lens", **DEVICE)
    events.api(questions, api_name="questions", **LONG)
    events.api(train, api_name="train", concurrency_id="train", concurrency_limit=jobs.ALL)  # a job: it only looks
