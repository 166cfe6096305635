"""The dashboard through ``gradio_client``, as a program uses it."""

import ast
import json
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from gradio_client import Client

import ctplab as ctp
from ctplab.app import worth
from ctplab.app.answers import Request, answer
from ctplab.app.bench import ARMS, Bench, Chosen, Loaded
from ctplab.formats.prompt_file import SavedPrompt
from ctplab.prompts import prefix
from ctplab.prompts.arms import KINDS, USUAL
from ctplab.prompts.prefix import PAPER_HARD_PROMPT

ROOT = Path(__file__).parents[2]


def client(site):
    return Client(site.url, verbose=False)


def tokens(site):
    return json.load(urllib.request.urlopen(f"{site.url}/healthz"))["tokens"]


def frozen(site, wait=0.4):
    """The counter, once it stands still."""
    before = tokens(site)
    while True:
        time.sleep(wait)
        now = tokens(site)
        if now == before:
            return now
        before = now


@pytest.mark.parametrize("path", sorted((ROOT / "app").glob("*.py")), ids=lambda p: p.name)
def test_the_app_knows_no_tensors(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    assert not {"torch", "transformers", "numpy", "faiss"} & names


def test_health(real):
    health = json.load(urllib.request.urlopen(f"{real.url}/healthz"))
    assert health["status"] == "ok" and "atlas" in health["models"]


def test_the_four_arms_on_the_embedded_model(real):
    answers = client(real).predict("Where is Tulsa?", api_name="/compare")
    assert [record["arm"] for record in answers] == list(USUAL)
    full = answers[0]
    assert full["text"] == "Oklahoma" and full["correct"] and full["state"] == "done"
    assert full["bytes"] > answers[1]["bytes"] > 0 and full["first"] > 0 and full["tokens"] > 1
    assert all(record["correct"] is not None for record in answers)


def test_answers_are_those_of_generate(real):
    bench, question = real.bench, "What is asparagus?"
    chosen = bench.chosen()
    request = Request(question, tuple(ARMS), PAPER_HARD_PROMPT)
    *_, records = answer(bench, chosen, request, threading.Event())
    for record in records:
        arm, loaded = bench.arm(record["arm"], chosen, PAPER_HARD_PROMPT, 0)
        expected = ctp.generate(arm, loaded.tokenizer, [f"Q: {question}\nA:"], max_new_tokens=24, stop="\n")[0]
        assert record["text"] == expected.text.strip()


def test_partial_results_arrive(fake):
    job = client(fake).submit("say word", max_new_tokens=12, arms=["full", "compressed"], api_name="/compare")
    job.result(timeout=30)
    seen = [len(records[0]["text"].split()) for records in job.outputs()]
    assert len(seen) > 5 and seen == sorted(seen) and seen[-1] == 12


def test_cancel_stops_the_model(fake):
    before = tokens(fake)
    job = client(fake).submit("say word", max_new_tokens=400, api_name="/compare")
    while tokens(fake) < before + 8:
        time.sleep(0.02)
    job.cancel()
    assert frozen(fake) < before + 400  # of 1,600: four arms


def test_four_clients_at_once_get_their_own_answers(fake):
    words = ["alpha", "beta", "gamma", "delta"]
    jobs = [client(fake).submit(f"say {word}", max_new_tokens=6, api_name="/compare") for word in words]
    for word, job in zip(words, jobs, strict=True):
        expected = " ".join(f"{word}{i}" for i in range(6))
        assert [record["text"] for record in job.result(timeout=60)] == [expected] * 4


def test_worths_of_rows_arrive_one_by_one_and_stop(real):
    bench, chosen, stop = real.bench, real.bench.chosen(), threading.Event()
    seen = []
    for found in worth.measure(bench, chosen, "atlas-web", 2, 32, stop):
        seen.append(len(found.rows))
        if len(found.rows) == 2:
            stop.set()
    assert seen == [0, 1, 2]
    arm, small = bench.arm("soft", chosen, "", 0)
    text = ctp.corpus("atlas-web", small.tokenizer, 32).test
    assert found.rows == tuple(ctp.row_worth(arm, text, rows=[0, 1], limit=2))
    assert "atlas-web (test split), 2 windows of 32 tokens" in found.words()


def test_stop_and_close_ask_no_further_token(fake):
    bench, request = fake.bench, Request("say word", USUAL, PAPER_HARD_PROMPT, max_new_tokens=50)
    stop = threading.Event()
    stream = answer(bench, bench.chosen(), request, stop)
    for _ in range(4):
        next(stream)
    stop.set()
    before = bench.tokens
    *_, records = stream
    assert bench.tokens == before and {record["state"] for record in records} == {"stopped"}
    closed = answer(bench, bench.chosen(), request, threading.Event())
    for _ in range(4):
        next(closed)
    before = bench.tokens
    closed.close()
    assert bench.tokens == before


def test_a_failed_arm_leaves_the_others_alone(fake):
    chosen = Chosen("atlas", fake.bench.chosen().compressed, "")
    request = Request("say word", USUAL, " ", max_new_tokens=3)
    *_, records = answer(fake.bench, chosen, request, threading.Event())
    states = {record["arm"]: record["state"] for record in records}
    assert states == {"full": "done", "compressed": "done", "hard": "failed", "soft": "failed"}
    assert "needs a learned prompt" in records[3]["error"] and "\n" not in records[3]["error"]


def test_a_prompt_that_is_not_there_fails_only_the_arms_that_need_one(fake):
    chosen = Chosen("atlas", fake.bench.chosen().compressed, "nothing")
    for name in ARMS:
        if name in ("full", "compressed", "hard", "bos"):
            assert fake.bench.arm(name, chosen, "Be good.", 0)[0].name == name
        else:
            with pytest.raises(ctp.InputError, match="no prompt 'nothing' is loaded"):
                fake.bench.arm(name, chosen, "Be good.", 0)


def test_the_page_offers_every_arm_that_can_be_built_from_what_is_loaded(fake):
    can = []
    for name in KINDS:
        try:
            fake.bench.arm(name, fake.bench.chosen(), "Be good.", 0)
            can.append(name)
        except ctp.InputError as error:
            assert "needs" in str(error)
    assert list(ARMS) == can


def test_random_rows_are_the_start_of_no_prompt(llama, tokenizer, tmp_path):
    """A prompt started from random rows of seed 0 to 4; the control with any of these seeds is made of others."""
    bench = Bench(tmp_path)
    bench.models["small"] = Loaded("small", "small", llama, tokenizer, {"tag": "w3"})
    for drawn in range(5):
        start = prefix.random_rows(llama, 6, drawn, "init")
        soft = ctp.Prefix("soft", start.rows + 1, start.ids)
        bench.prompts["p"] = ("p", SavedPrompt(soft, start, {}))
        for seed in range(5):
            rows = bench.arm("random", Chosen("small", "small", "p"), "", seed)[0].prefix
            assert rows.k == 6 and rows.ids != start.ids


def test_same_seed_same_sample(real):
    def sample(seed):
        return client(real).predict(
            "Once upon a time", arms=["full"], ask=False, temperature=1.0, seed=seed, api_name="/compare"
        )[0]["text"]

    assert sample(1) == sample(1) != sample(2)


def test_nearest_histogram_and_lens(real):
    program = client(real)
    k = real.bench.prompt(real.bench.chosen().prompt).prefix.k
    rows = program.predict(top=3, api_name="/nearest")
    assert len(rows) == k and all(len(row["nearest"]) == 3 for row in rows)
    histogram = program.predict(top=10, bins=25, api_name="/histogram")
    assert len(histogram["edges"]) == 26 and sum(histogram["counts"]["soft"]) == 10 * k
    lens = program.predict("Q: Where is Tulsa?\nA: Oklahoma", api_name="/lens")
    assert set(lens["arms"]) == set(USUAL)
    assert all(len(arm["surprisal"]) == len(lens["tokens"]) for arm in lens["arms"].values())
    assert lens["arms"]["full"]["kl"][1:] == pytest.approx([0] * (len(lens["tokens"]) - 1), abs=1e-6)


def test_many_questions_arrive_block_by_block(real):
    listed = "question,answer\nWhere is Tulsa?,Oklahoma\nWho knows?,\n"
    job = client(real).submit(listed, arms=["full", "soft"], api_name="/questions")
    found = job.result(timeout=60)
    assert found["rows"][0]["answers"]["full"]["text"] == "Oklahoma"
    assert found["rows"][0]["answers"]["full"]["right"] and found["rows"][1]["answers"]["full"]["right"] is None
    assert found["summary"]["answered"] == 2 and found["summary"]["shares"]["full"]["n"] == 1
    assert len(job.outputs()) == 2  # one for each arm


def test_scales_are_learned_for_a_program_and_a_cancelled_job_keeps_its_best(fake, text_file):
    program, how = client(fake), {"corpus": f"file:{text_file}", "seq_len": 32, "batch": 2, "api_name": "/train"}
    job = program.submit(["scales", "norms"], "of-a-program", steps=6, every=3, **how)
    found, seen = job.result(timeout=120), [record["state"] for record in job.outputs()]
    assert found["names"] == {"compressed": "of-a-program"} and "of-a-program" in fake.bench.models
    assert [step for step, _ in found["validation"]] == [3, 6] and found["done"] == found["total"] == 6
    assert seen[-1] == "done" and set(seen[:-1]) <= {"queued", "running"}
    endless = program.submit(["norms"], "endless", steps=100_000, every=50, **how)
    while not any(record["done"] for record in endless.outputs()):
        time.sleep(0.05)
    endless.cancel()
    while fake.bench.jobs.unfinished("train"):
        time.sleep(0.05)
    kept = fake.bench.jobs.latest("train")
    assert kept.state == "done" and "stopped by hand" in kept.note and kept.result["names"] == {"compressed": "endless"}
    for name in ("of-a-program", "endless"):
        del fake.bench.models[name]  # other tests have this bench too


def test_every_number_has_a_bound(real):
    program = client(real)
    for name, wrong in (
        ("/nearest", {"top": 0}), ("/nearest", {"top": 10**6}), ("/nearest", {"metric": "x"}),
        ("/histogram", {"bins": 10**7}), ("/histogram", {"top": "x"}), ("/lens", {"text": "a b", "top": 10**9}),
        ("/latency", {"repeats": 10**6}), ("/latency", {"tokens": list(range(100))}),
        ("/compare", {"question": "a", "max_new_tokens": 10**9}), ("/compare", {"question": "a" * 30_000}),
        ("/questions", {"limit": 10**9}), ("/questions", {"questions": "task:../x"}),
        ("/train", {"what": []}), ("/train", {"what": ["all"]}), ("/train", {"what": ["low-rank"], "rank": 10**6}),
        ("/train", {"what": ["scales"], "name": "../x"}), ("/train", {"steps": 10**9}), ("/train", {"lr": -1}),
    ):  # fmt: skip
        with pytest.raises(Exception, match=r"give|choose|at most|a name of") as caught:
            program.predict(**wrong, api_name=name)
        assert "Traceback" not in str(caught.value) and "NoneType" not in str(caught.value)


def test_bad_input_is_one_line(real):
    for wrong, words in (({"arms": ["nobody"]}, "unknown arm"), ({"prompt": "nothing"}, "no prompt 'nothing'")):
        records = client(real).predict("Where is Tulsa?", api_name="/compare", **wrong)
        assert any(words in record["error"] for record in records)
    with pytest.raises(Exception, match="Type a question first") as caught:
        client(real).predict(" ", api_name="/compare")
    assert "Traceback" not in str(caught.value)


def test_a_wrong_pair_is_told_in_plain_words(real, tmp_path):
    saved = real.bench.prompt(real.bench.chosen().prompt)
    folder = tmp_path / "stranger"
    folder.mkdir()
    source = Path(next(path for path, kept in real.bench.prompts.values() if kept is saved))
    info = json.loads((source / "prompt.json").read_text()) | {"tokenizer_fingerprint": "0" * 16}
    (folder / "prompt.json").write_text(json.dumps(info))
    (folder / "prompt.safetensors").write_bytes((source / "prompt.safetensors").read_bytes())
    bench = Bench(tmp_path)
    bench.models = real.bench.models
    name = bench.load_prompt(str(folder))
    fits, notes = bench.fit(bench.chosen(prompt=name))
    assert not fits and "another tokenizer" in notes[0]
    for arm in ("soft", "init", "full+soft"):  # made of its rows
        with pytest.raises(ctp.InputError, match="another tokenizer"):
            bench.arm(arm, bench.chosen(prompt=name), "", 0)
    assert bench.arm("random", bench.chosen(prompt=name), "", 0)[0].prefix.k == saved.prefix.k
    with pytest.raises(ctp.InputError, match="no model folder"):
        bench.load_model("/nowhere/at/all")


def test_turns_are_taken_in_order():
    from ctplab.app.turns import Turns

    turns, order = Turns(), []

    def work(name):
        with turns.turn():
            order.append(name)

    with turns.turn():
        threads = []
        for name in range(5):
            threads.append(threading.Thread(target=work, args=(name,)))
            threads[-1].start()
            while len(turns._waiting) < name + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_the_closer_look_reads_what_was_sent(tokenizer):
    """With a chat template the question is a turn in it; else it has the form of the embedded questions, or none."""
    import copy

    from ctplab.app.answers import Request, read_text

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    ask = Request(" Where is Lima? ", ("full",), "")
    assert read_text(ask, tokenizer, "Peru") == "Q: Where is Lima?\nA: Peru"
    assert read_text(ask, chat, "Peru") == "<user>Where is Lima?<a>Peru"
    assert read_text(Request("Lima is", ("full",), "", ask=False), chat, " in Peru") == "Lima is in Peru"
    assert read_text(Request("Where?", ("full",), "", raw=True), chat, "Here") == "Q: Where?\nA: Here"
