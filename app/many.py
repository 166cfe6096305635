"""In the tab *Compare*: many questions at once, a table that fills, and each row's cards with their closer look."""

import random
from pathlib import Path
from typing import Any

import gradio as gr

import ctplab as ctp
from ctplab.app import asked, limits, views
from ctplab.app.answers import Record, Request, chats, read_text, snapshot
from ctplab.app.asked import CHOICES, EVERYTHING, Wanted
from ctplab.app.bench import ARMS, DEVICE, PRIVATE, Bench, Chosen
from ctplab.app.closer import look
from ctplab.app.guard import owner
from ctplab.app.header import Header
from ctplab.app.history import Form
from ctplab.app.jobs import Job
from ctplab.app.share import download
from ctplab.app.toast import plain_errors
from ctplab.show import question_files
from ctplab.text.reading import start_of

SOURCES = {"the embedded world's": "atlas", "a list": "list", "an lm-eval task": "task"}
FILES = {"JSONL": ".jsonl", "CSV": ".csv", "LLM Comparator": ".json"}


def records_of(bench: Bench, job: Job, number: int) -> list[dict[str, Any]]:
    """One row's answers in the form that cards show."""
    row, chosen, wanted = job.result["rows"][number - 1], job.result["chosen"], job.result["wanted"]
    found = []
    for arm, given in row["answers"].items():
        model = bench.model(chosen.full if arm in ("full", "full+soft") else chosen.compressed)
        record = Record(arm, model.name, int(model.about.get("bytes", 0)), given["text"], state="done")
        record.correct, record.how, record.known = given["right"], given["how"], " | ".join(row["expected"])
        request = _request(wanted, row["question"])
        record.sent = read_text(request, model.tokenizer, "")
        record.start = start_of(model.tokenizer, wanted.start, raw=not chats(request, model.tokenizer))
        found.append(record)
    return snapshot(found)


def _request(wanted: Wanted, question: str) -> Request:
    sampling = (0.0, 1.0, 1.0, wanted.seed, wanted.max_new_tokens, wanted.raw, wanted.start)
    return Request(question, wanted.arms, wanted.hard_prompt, True, *sampling)


def drawn(rows: list[dict[str, Any]]) -> int:
    """The number of a row worth a look: recovered if there is one, else lost, else any that was answered."""
    for kind in ("lost, then recovered", "lost by compression", "arms differ", EVERYTHING):
        found = [line[0] for line in asked.table(rows, kind, ())["data"]]
        if found:
            return random.choice(found)
    raise ctp.InputError("Ask a set first; then a question is drawn that compression lost and the prompt got back.")


def build(
    bench: Bench, header: Header, arms: gr.CheckboxGroup, hard: gr.Textbox, raw: gr.Checkbox, first: gr.Dropdown
) -> None:
    """Lay the part out inside the current ``gr.Blocks``; ``arms`` to ``first`` are those of one question."""
    with gr.Row():
        source = gr.Radio(list(SOURCES), value=next(iter(SOURCES)), label="Questions", elem_id="many-source", scale=2)
        limit = gr.Number(200, label="How many", precision=0, minimum=1, maximum=asked.MOST, elem_id="many-limit",
                          min_width=90)  # fmt: skip
        longest = gr.Number(24, label="Longest answer", precision=0, minimum=1, maximum=512, min_width=90)
    with gr.Row(visible=False, equal_height=True) as listed:
        pasted = gr.Textbox(
            label="A question a line (a tab before its answer), CSV or JSONL with question and answer", lines=5,
            elem_id="many-list", scale=4,
        )  # fmt: skip
        upload = gr.UploadButton("From a file", file_types=[".csv", ".jsonl", ".json", ".txt"], elem_id="many-file",
                                 min_width=120)  # fmt: skip
    task = gr.Textbox(label="Task (lm-eval's name)", placeholder="openbookqa", visible=False, elem_id="many-task")
    with gr.Row():
        go = gr.Button("Ask all", variant="primary", elem_id="many-go")
        stop = gr.Button("Stop", elem_id="many-stop", min_width=80)
        surprise = gr.Button("Surprise me", elem_id="many-surprise", min_width=120)
    status = gr.HTML(elem_id="many-job")
    counts = gr.HTML(elem_id="many-counts")
    kind = gr.Dropdown(CHOICES, value=EVERYTHING, label="Show", elem_id="many-kind")
    rows = gr.Dataframe(
        headers=["no.", "question"], label="Answers (click a row; ✓ right, ✗ not; click a heading to sort)",
        elem_id="many-rows", interactive=False, max_height=460, wrap=True,
        column_widths=[60, 320, 130, *[150] * len(ARMS)],
    )  # fmt: skip
    with gr.Column(visible=False, elem_id="many-one") as one:
        title = gr.Markdown(elem_id="many-title")
        view = gr.Radio([views.TEXT, views.SURPRISAL, views.KL], value=views.TEXT, label="View", elem_id="many-view")
        cards = gr.HTML(elem_id="many-cards")
    with gr.Row():
        saves = {
            name: gr.Button(f"Download {name}", elem_id=f"many-{ending[1:]}", min_width=110)
            for name, ending in FILES.items()
        }
    shown, picked = gr.State(None), gr.State(0)

    def mine(request: gr.Request) -> Job:
        job = bench.jobs.latest("ask", owner(request))
        if job is None or "rows" not in job.result:
            raise ctp.InputError("Ask a set of questions first.")
        return job

    def ask_all(
        request: gr.Request, full: str, compressed: str, prompt: str | None, source: str, limit: float, pasted: str,
        task: str, arms: list[str], hard: str, longest: float, raw: bool, seed: float, start: str,
    ) -> str:  # fmt: skip
        with plain_errors():
            kinds = {"atlas": "atlas", "list": pasted or "", "task": f"task:{(task or '').strip()}"}
            wanted = Wanted(
                kinds[SOURCES[limits.one_of(source, "questions", SOURCES)]], int(limit or 0), tuple(arms), hard,
                int(longest or 0), raw, int(seed or 0), start,
            )  # fmt: skip
            return asked.start(bench, Chosen(full, compressed, prompt or ""), wanted, owner(request)).html()

    def poll_many(request: gr.Request, shown: Any, kind: str) -> list[Any]:
        job = bench.jobs.latest("ask", owner(request))
        now = None if job is None else (job.version, kind)
        if job is None or now == shown:
            return [gr.skip()] * 4
        found = job.result.get("rows", [])
        names = job.result["wanted"].arms if "wanted" in job.result else ()
        return [
            job.html(owner(request)),
            asked.counted(found, job.result.get("close")),
            asked.table(found, kind, names),
            now,
        ]

    def cancel_many(request: gr.Request) -> None:
        with plain_errors():
            bench.jobs.mine("ask", owner(request)).cancel.set()

    def show(request: gr.Request, number: int, view: str) -> list[Any]:
        with plain_errors():
            job = mine(request)
            records, row = records_of(bench, job, number), job.result["rows"][number - 1]
            if view == views.TEXT or not records:
                html = views.cards(records)
            else:
                chosen, wanted = job.result["chosen"], job.result["wanted"]
                tokenizer = bench.model(chosen.full).tokenizer
                text = read_text(_request(wanted, row["question"]), tokenizer, records[0]["text"])
                names = tuple(name for name in ARMS if name in row["answers"])
                start = "none" if chats(_request(wanted, ""), tokenizer) else wanted.start
                seen = look(bench, chosen, names, wanted.hard_prompt, wanted.seed, text, start=start)
                html = views.looked(records, seen, view)
        expected = f" (expected: {' | '.join(row['expected'])})" if row["expected"] else ""
        return [gr.update(visible=True), f"**{number}.** {row['question']}{expected}", html, number]

    def pick(event: gr.SelectData, request: gr.Request, view: str) -> list[Any]:
        return show(request, int(event.row_value[0]), view)

    def draw(request: gr.Request, view: str) -> list[Any]:
        with plain_errors():
            number = drawn(mine(request).result["rows"])
        return show(request, number, view)

    def again(request: gr.Request, number: int, view: str) -> list[Any]:
        return show(request, number, view) if number else [gr.skip()] * 4

    def from_file(path: str) -> str:
        with plain_errors():
            if Path(path).stat().st_size > 4_000_000:
                raise ctp.InputError("the file is larger than 4 MB")
            return Path(path).read_text(encoding="utf-8-sig", errors="replace")

    def save(name: str) -> Any:
        def written(request: gr.Request) -> dict[str, str]:
            with plain_errors():
                job = mine(request)
            found, wanted = job.result["rows"], job.result["wanted"]
            second = "soft" if "soft" in wanted.arms else wanted.arms[-1]
            first = "compressed" if "compressed" in wanted.arms and second != "compressed" else wanted.arms[0]
            about = {**vars(job.result["chosen"]), "temperature": 0.0, "hard_prompt": wanted.hard_prompt}
            about |= {part: getattr(wanted, part) for part in ("max_new_tokens", "raw", "start", "seed")}
            text = {
                "JSONL": lambda: question_files.jsonl(found, about),
                "CSV": lambda: question_files.as_csv(found, about),
                "LLM Comparator": lambda: question_files.comparator(found, first, second, wanted.name, about),
            }[name]()
            return {"name": f"{wanted.name}{FILES[name]}", "type": "text/plain", "text": text}

        return written

    one_row = [one, title, cards, picked]
    source.change(
        lambda s: (gr.update(visible=SOURCES[s] == "list"), gr.update(visible=SOURCES[s] == "task")), source,
        [listed, task], queue=False, show_progress="hidden", **PRIVATE,
    )  # fmt: skip
    form: Form = {
        **header.names, "source": source, "limit": limit, "list": pasted, "task": task, "arms": arms,
        "hard_prompt": hard, "max_new_tokens": longest, "raw": raw, "seed": header.seed, "start": first,
    }  # fmt: skip

    def words(told: dict[str, Any]) -> str:
        named = {"a list": f"{len(told['list'].strip().splitlines())} lines", "an lm-eval task": told["task"]}
        return f"{told['source']}, {named.get(told['source'], told['limit'])}; arms {', '.join(told['arms'])}"

    started = go.click(ask_all, list(form.values()), status, **PRIVATE)
    header.past.record(started, "questions", "compare", form, words)
    gr.Timer(1.5).tick(
        poll_many, [shown, kind], [status, counts, rows, shown], queue=False, show_progress="hidden", **PRIVATE
    )
    stop.click(cancel_many, **PRIVATE)
    rows.select(pick, view, one_row, show_progress="hidden", **DEVICE, **PRIVATE)
    surprise.click(draw, view, one_row, show_progress="hidden", **DEVICE, **PRIVATE)
    view.input(again, [picked, view], one_row, show_progress="hidden", **DEVICE, **PRIVATE)
    upload.upload(from_file, upload, pasted, show_progress="hidden", **PRIVATE)
    for name, button in saves.items():
        download(button, save(name), [])
