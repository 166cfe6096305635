"""A real Chromium uses every tab as a person would. No page logs a console error or contacts another host."""

import json
import os
import re
import time
import urllib.request
from io import BytesIO

import pytest
from contrast import contrast
from PIL import Image

import ctplab as ctp
from ctplab.prompts.arms import USUAL
from ctplab.prompts.prefix import PAPER_HARD_PROMPT
from ctplab.runs.store import sweep as sweep_file

from .made_up import report

SOON = 20_000  # ms: patience on a busy machine, no timing of ours
UNNAMED = """() => [...document.querySelectorAll('input, textarea, select, button')].filter((e) => {
  if (!e.offsetParent || e.type === 'hidden') return false;
  const label = e.labels && [...e.labels].some((l) => l.innerText.trim());
  const named = e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.title || e.innerText.trim();
  return !label && !named;
}).map((e) => e.outerHTML.slice(0, 120))"""


def tokens(site):
    return json.load(urllib.request.urlopen(f"{site.url}/healthz"))["tokens"]


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def generate(page):
    page.click("#generate")
    page.wait_for_selector("#answers [aria-busy=false]", timeout=SOON)


def plot(page, place):
    """The plot's height in px and the lengths of its traces, once it is drawn."""
    page.wait_for_selector(f"{place} .js-plotly-plot .main-svg", timeout=SOON)
    height = page.locator(f"{place} .js-plotly-plot").bounding_box()["height"]
    lengths = page.evaluate("(p) => document.querySelector(p + ' .js-plotly-plot').data.map((t) => t.x.length)", place)
    return height, lengths


def still(page, place):
    """Wait until an element has stayed where it is for half a second: plots above it move what lies below."""
    page.wait_for_function(
        """(place) => { const top = document.querySelector(place)?.getBoundingClientRect().top, now = Date.now();
        if (top !== window.stillTop) { window.stillTop = top; window.stillSince = now; }
        return top !== undefined && now - window.stillSince > 500; }""",
        arg=place,
    )


def pick(page, place, trace, point):
    """Click a point of a plot, as plotly reports it."""
    page.wait_for_function("(p) => document.querySelector(p + ' .js-plotly-plot').dataset.named", arg=place)
    page.evaluate(
        """([p, trace, point]) => { const plot = document.querySelector(p + ' .js-plotly-plot');
        plot.emit('plotly_click', {points: [{customdata: plot.data[trace].customdata[point]}]}); }""",
        [place, trace, point],
    )


def saved(page, button):
    with page.expect_download(timeout=SOON) as waiting:
        page.click(button)
    return waiting.value.suggested_filename, waiting.value.path().read_text(encoding="utf-8")


def test_ask_and_look_closer(visit, real):
    page = visit(real)
    page.fill("#question textarea", "Where is Tulsa?")
    page.locator("#question textarea").press("Control+Enter")
    page.wait_for_selector("#answers [aria-busy=false]", timeout=SOON)
    full = page.locator("#arm-full")
    assert full.locator(".text").inner_text() == "Oklahoma"
    assert "correct" in full.inner_text() and "tok/s" in full.inner_text() and "MB" in full.inner_text()
    assert page.locator("#answers .arm").count() == len(USUAL)

    page.locator("#view").get_by_label("Difference from full").check()
    page.wait_for_selector("#answers .legend ins", timeout=SOON)
    for view in ("Surprisal", "KL to full"):
        page.locator("#view").get_by_label(view).check()
        page.wait_for_selector("#arm-soft .tok", timeout=SOON)
    before = page.locator("#arm-soft .alts").inner_text()
    page.locator("#arm-full .tok").nth(3).click()  # every card names the token and what its arm expected
    page.wait_for_function("(t) => document.querySelector('#arm-soft .alts').innerText !== t", arg=before)
    assert page.locator("#answers .tok[aria-pressed=true]").count() == len(USUAL)
    page.locator("#arm-full .tok").nth(3).press("ArrowRight")
    assert page.locator("#arm-full .tok").nth(4).get_attribute("aria-pressed") == "true"
    assert "Oklahoma" in full.locator(".text").inner_text() and "correct" in full.inner_text()  # still in sight
    name, text = saved(page, "#as-jsonl")
    records = [json.loads(line) for line in text.splitlines()]
    assert name.endswith(".jsonl") and [r["arm"] for r in records] == list(USUAL)
    assert records[0]["text"] == "Oklahoma" and records[0]["question"] == "Where is Tulsa?"
    assert records[0]["sent"] == "Q: Where is Tulsa?\nA: "
    made = records[0]["settings"]
    assert (made["temperature"], made["seed"], made["compressed"]) == (0, 0, real.bench.chosen().compressed)
    assert made["prompt"] == real.bench.chosen().prompt and made["hard_prompt"] == PAPER_HARD_PROMPT
    name, text = saved(page, "#as-markdown")
    assert name.endswith(".md") and "| full | atlas | Oklahoma | yes |" in text
    assert page.evaluate(UNNAMED) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_an_empty_box_can_be_seen(visit, real, dark):
    page = visit(real, dark=dark)
    found = page.locator("input[type=checkbox]:not(:checked)").first.evaluate(
        """(box) => { const own = getComputedStyle(box), behind = getComputedStyle(box.closest('label'));
        return [own.borderColor, own.backgroundColor, behind.backgroundColor]; }"""
    )
    edge, *grounds = (f"#{bytes(map(int, re.findall(r'[0-9]+', colour)[:3])).hex()}" for colour in found)
    assert min(contrast(edge, ground) for ground in grounds) >= 3  # WCAG 2.2, 1.4.11


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_marked_words_can_be_read(visit, real, dark):
    page = visit(real, dark=dark)
    generate(page)
    for view, marked in (("Difference from full", "#arm-compressed ins"), ("Surprisal", "#arm-compressed .tok")):
        page.locator("#view").get_by_label(view).check()
        page.wait_for_selector(marked, timeout=SOON)
        for i in range(min(12, page.locator(marked).count())):
            picture = Image.open(BytesIO(page.locator(marked).nth(i).screenshot())).convert("RGB")
            colours = [colour for _, colour in picture.getcolors(picture.width * picture.height)]
            ground = max(picture.getcolors(picture.width * picture.height))[1]
            best = max(contrast(f"#{bytes(ground).hex()}", f"#{bytes(ink).hex()}") for ink in colours)
            assert best >= 4.5  # what WCAG asks of text


def test_many_questions_fill_a_table(visit, real):
    page = visit(real)
    page.get_by_role("tab", name="Many questions").click()
    page.get_by_label("a list").check()
    page.fill("#many-list textarea", "question,answer\nWhere is Tulsa?,Oklahoma\nWhere is Long Beach?,California\n")
    page.click("#many-go")
    page.wait_for_selector("#many-job [data-state=done]", timeout=60_000)
    page.wait_for_function("document.querySelector('#many-counts').innerText.includes('2 of 2 answered')")
    page.wait_for_function("document.querySelector('#many-counts').innerText.includes('on the full model\\'s answers')")
    page.locator("#many-rows [data-testid=cell-0-1]").click()
    page.wait_for_selector("#many-cards #arm-full", timeout=SOON)
    assert "Oklahoma" in page.locator("#many-cards #arm-full").inner_text()
    page.locator("#many-view").get_by_label("Surprisal").check()
    page.wait_for_selector("#many-cards #arm-soft .tok", timeout=SOON)
    name, text = saved(page, "#many-json")
    assert name.endswith(".json") and [m["name"] for m in json.loads(text)["models"]] == ["compressed", "soft"]
    name, text = saved(page, "#many-jsonl")
    assert [json.loads(line)["expected"] for line in text.splitlines()] == [["Oklahoma"], ["California"]]


def test_a_job_is_its_owners(visit, real, text_file):
    mine, other = visit(real), visit(real)  # patience: a learning job and two pages share a busy machine
    tab(mine, "Train")
    for place, value in (("tokens", 2), ("steps", 150_000), ("batch", 1), ("every", 150_000)):  # never ends by itself
        mine.fill(f"#train-{place} input", str(value))
    mine.fill("#train-name textarea, #train-name input", "owned")
    mine.get_by_label("Text (or file:PATH)").fill(f"file:{text_file}")
    mine.get_by_label("Text (or file:PATH)").press("Enter")
    mine.click("#train")
    tab(other, "Train")
    other.wait_for_selector("#train-job .job:has-text('another visitor')", timeout=120_000)
    other.click("#train-stop")
    other.wait_for_selector(".toast-message-text:has-text('another visitor')", timeout=120_000)
    (job,) = [job for job in real.bench.jobs.unfinished("train") if "owned" in job.title]
    assert not job.cancel.is_set()
    mine.click("#train-stop")
    mine.wait_for_selector("#train-job [data-state=done]:has-text('owned')", timeout=120_000)
    assert job.cancel.is_set() and "stopped by hand" in job.note


def test_a_shared_link_restores_the_settings(visit, real):
    page = visit(real)
    page.fill("#question textarea", "What is asparagus?")
    page.locator("#arms").get_by_label("bos").check()
    page.locator("#arms").get_by_label("hard").uncheck()
    page.locator("#view").get_by_label("Surprisal").check()
    page.click("#share")
    page.wait_for_function("(document.querySelector('#link textarea, #link input') || {}).value?.startsWith('http')")
    link = page.locator("#link textarea, #link input").first.input_value()
    other = visit(real, query=link.removeprefix(real.url).lstrip("/"))
    other.wait_for_function("document.querySelector('#question textarea').value === 'What is asparagus?'")
    assert other.locator("#arms").get_by_label("bos").is_checked()
    assert not other.locator("#arms").get_by_label("hard").is_checked()
    other.wait_for_selector("#arm-bos .tok", timeout=SOON)  # it was run, and is seen as it was


def test_what_was_done_is_kept_in_the_browser_and_set_again(visit, real):
    page = visit(real)
    page.fill("#question textarea", "What is asparagus?")
    page.locator("#arms").get_by_label("bos").check()
    generate(page)
    tab(page, "Latency")
    page.fill("#latency-tokens textarea, #latency-tokens input", "0, 4")
    page.fill("#latency-repeats input", "1")
    page.click("#latency")
    page.wait_for_function("(document.querySelector('#speed .js-plotly-plot') || {data: []}).data.length === 3")
    page.click("#history > button")
    page.wait_for_selector("#past [data-testid=cell-1-1]")  # both are kept
    page.evaluate("sessionStorage.clear()")
    page.goto(real.url)  # a new visit finds everything as it is at first
    page.wait_for_function("document.querySelector('#question textarea')")
    page.wait_for_function("document.querySelector('#question textarea').value === 'Where is Long Beach?'")
    page.click("#history > button")
    page.wait_for_selector("#past [data-testid=cell-1-1]")
    assert page.locator("#past [data-testid=cell-0-1]").inner_text() == "latency"
    assert "full: spring vegetable" in page.locator("#past [data-testid=cell-1-5]").inner_text()
    page.locator("#past [data-testid=cell-0-2]").click()
    page.wait_for_function("document.querySelector('#latency-repeats input')?.value === '1'")
    page.locator("#past [data-testid=cell-1-2]").click()
    page.wait_for_function("document.querySelector('#question textarea').value === 'What is asparagus?'")
    assert page.get_by_role("tab", name="Compare").get_attribute("aria-selected") == "true"
    assert page.locator("#arms").get_by_label("bos").is_checked()
    page.click("#forget")
    page.wait_for_function("!document.querySelector('#past [data-testid=cell-0-1]')?.innerText.trim()")


def test_text_grows_and_stop_stops(visit, fake):
    page = visit(fake, query="?q=say+word&length=160")
    page.wait_for_function("document.querySelector('#question textarea').value === 'say word'")
    page.click("#generate")
    text = page.locator("#arm-full .text")
    lengths = []
    for _ in range(3):
        page.wait_for_function(
            "(n) => document.querySelector('#arm-full .text:not(.empty)')?.innerText.length > n",
            arg=max(lengths, default=5),
        )
        lengths.append(len(text.inner_text()))
    page.click("#stop")
    page.wait_for_selector("#arm-full .badge:has-text('stopped')", timeout=SOON)
    count, shown = tokens(fake), text.inner_text()
    time.sleep(0.5)
    assert tokens(fake) == count and text.inner_text() == shown
    assert lengths == sorted(set(lengths)) and len(shown.split()) < 160
    page.click("#clear")
    page.wait_for_function("document.querySelector('#answers').innerText.includes('Press Generate')")


def test_a_closed_page_stops_the_model(visit, fake):
    page = visit(fake, query="?q=say+word&length=160")
    page.wait_for_function("document.querySelector('#question textarea').value === 'say word'")
    before = tokens(fake)
    page.click("#generate")
    while tokens(fake) < before + 8:
        time.sleep(0.02)
    page.context.close()
    last = tokens(fake)
    while True:
        time.sleep(0.5)
        now = tokens(fake)
        if now == last:
            break
        last = now
    assert last < before + 4 * 160


def test_two_sessions_do_not_mix(visit, fake):
    pages = {word: visit(fake, query=f"?q=say+{word}&length=12") for word in ("left", "right")}
    for word, page in pages.items():
        page.wait_for_function(f"document.querySelector('#question textarea').value === 'say {word}'")
        page.click("#generate")
    for word, page in pages.items():
        page.wait_for_selector("#answers [aria-busy=false]", timeout=SOON)
        answers = page.locator("#answers .arm .text").all_inner_texts()
        assert answers == [" ".join(f"{word}{i}" for i in range(12))] * 4


def test_an_error_is_a_toast(visit, real):
    page = visit(real)
    page.fill("#question textarea", "")
    page.click("#generate")
    toast = page.locator(".toast-message-text").first
    toast.wait_for(timeout=SOON)
    assert "Type a question first" in toast.inner_text()


def test_prompt_tokens(visit, real):
    page = visit(real)
    tab(page, "Prompt tokens")
    k = real.bench.prompt(real.bench.chosen().prompt).prefix.k
    height, lengths = plot(page, "#map")
    assert height > 200 and lengths[1:] == [3 * k, k, k]
    page.locator("#tokens [data-testid=cell-3-1]").click()
    page.wait_for_function("document.querySelector('#neighbours').innerText.includes('row 3')")
    page.get_by_label("l2").check()  # the row stays in view
    page.wait_for_function("document.querySelector('#neighbours').innerText.includes('row 3')")
    page.fill("#word textarea, #word input", "California")
    page.locator("#word textarea, #word input").press("Enter")
    page.wait_for_function("document.querySelector('#map .js-plotly-plot').data.some((t) => t.name === 'your word')")
    assert "California" in page.locator("#nearby").inner_text()
    page.click("#worth-box > button")
    page.fill("#worth-windows input", "2")
    page.get_by_label("Tokens a window").first.fill("32")
    page.click("#worth-go")  # bars beside the rows, one after the other, until Stop
    page.wait_for_function(
        "document.querySelector('#worth-told').innerText.match(/[1-9]\\d* of \\d+ rows, measured on/)"
    )
    page.click("#worth-stop")
    page.wait_for_function("document.querySelector('#worth-told').innerText.includes('Stopped')", timeout=SOON)
    assert "2 windows of 32 tokens" in page.locator("#worth-told").inner_text()
    assert float(page.locator("#tokens [data-testid=cell-0-6]").inner_text())


def test_similarity(visit, real):
    page = visit(real)
    tab(page, "Similarity")
    k = real.bench.prompt(real.bench.chosen().prompt).prefix.k
    height, lengths = plot(page, "#histogram")
    assert height > 200 and lengths == [81] * 4 + [k]
    box = page.locator("#bins input[type=number]")
    box.fill("40")
    box.press("Enter")
    box.blur()
    page.wait_for_function("document.querySelector('#histogram .js-plotly-plot').data[0].x.length === 41")
    page.get_by_label("Logarithmic counts").check()
    page.wait_for_function("document.querySelector('#histogram .js-plotly-plot').layout.yaxis.type === 'log'")
    pick(page, "#histogram", 4, 5)
    page.wait_for_function("document.querySelector('#histogram .js-plotly-plot').data.length === 6")
    assert page.get_by_label("Row in view").input_value() == "5"
    tab(page, "Prompt tokens")  # the same row is in view on the map and in the table
    page.wait_for_function("document.querySelector('#neighbours').innerText.includes('row 5')")
    page.wait_for_function("document.querySelector('#map .js-plotly-plot')?.data?.at(-1).name === 'row 5'")
    pick(page, "#map", 3, 7)
    page.wait_for_function("document.querySelector('#neighbours').innerText.includes('row 7')")
    tab(page, "Similarity")
    page.wait_for_function("document.querySelector('#histogram .js-plotly-plot').data.at(-1).name.startsWith('row 7')")
    name, text = saved(page, "#histogram-csv")
    rows = [line.split(",") for line in text.splitlines()]
    assert name.endswith(".csv") and rows[0] == ["from", "to", "soft", "init", "real", "random"] and len(rows) == 41


def test_compress_then_use_it(visit, real, text_file):
    page = visit(real)
    tab(page, "Compress")
    page.fill("#samples input", "4")
    page.get_by_label("Calibration text").fill(f"file:{text_file}")
    page.get_by_label("Calibration text").press("Enter")
    page.click("#compress-estimate")
    page.wait_for_function("document.querySelector('#compress-told').innerText.match(/About .* MB on disk/)")
    page.click("#compress")
    page.wait_for_selector("#compress-job [data-state=done]", timeout=60_000)
    page.wait_for_function("document.querySelector('#layers').innerText.includes('q_proj')")
    assert "true bits" in page.locator("#compress-summary").inner_text()
    page.click("#compress-use")
    page.wait_for_function("document.querySelector('#card').innerText.includes('w3-text-4x128')")
    assert page.get_by_role("tab", name="Compare").get_attribute("aria-selected") == "true"


def test_train_reload_and_use_it(visit, real, text_file):
    page = visit(real)
    tab(page, "Train")
    for place, value in (("tokens", 4), ("steps", 6), ("batch", 2), ("every", 3)):
        page.fill(f"#train-{place} input", str(value))
    page.fill("#train-name textarea, #train-name input", "tiny")
    page.get_by_label("Text (or file:PATH)").fill(f"file:{text_file}")
    page.get_by_label("Text (or file:PATH)").press("Enter")
    page.click("#train")
    page.wait_for_selector("#train-job .job", timeout=SOON)
    page.reload()  # the page opens where it was left
    page.wait_for_selector("#train-job [data-state=done]", timeout=60_000)
    height, lengths = plot(page, "#curves")
    assert height > 200 and lengths == [6, 2, 2, 2]
    page.click("#train-use")
    page.wait_for_function("document.querySelector('#card').innerText.includes('tiny')")
    assert page.get_by_role("tab", name="Compare").get_attribute("aria-selected") == "true"
    generate(page)
    assert page.locator("#arms").get_by_label("soft", exact=True).is_checked()
    assert page.locator("#arm-soft .text").count() == 1 and "failed" not in page.locator("#arm-soft").inner_text()


def test_scales_and_norms_are_learned_and_lead_to_compare(visit, real, text_file):
    page = visit(real)
    tab(page, "Train")
    asked = page.locator("#train-what")
    for name in ("scales", "norms"):
        asked.get_by_label(name).check()
    asked.get_by_label("prompt").uncheck()
    page.wait_for_selector("#train-tokens", state="hidden", timeout=SOON)
    assert page.locator("#train-init").is_hidden() and page.locator("#train-rank").is_hidden()
    asked.get_by_label("low-rank").check()
    page.wait_for_selector("#train-rank", timeout=SOON)
    asked.get_by_label("low-rank").uncheck()
    page.fill("#train-name textarea, #train-name input", "in-place")
    for place, value in (("steps", 6), ("batch", 2), ("every", 3)):
        page.fill(f"#train-{place} input", str(value))
    page.get_by_label("Text (or file:PATH)").fill(f"file:{text_file}")
    page.get_by_label("Text (or file:PATH)").press("Enter")
    page.click("#train")
    page.wait_for_selector("#train-job [data-state=done]:has-text('in-place')", timeout=60_000)
    page.wait_for_selector("#train-says table")
    page.click("#train-use")
    page.wait_for_function("document.querySelector('#card').innerText.includes('scales and norms learned on')")
    assert page.get_by_role("tab", name="Compare").get_attribute("aria-selected") == "true"
    generate(page)
    assert "in-place" in page.locator("#arm-compressed").inner_text()
    page.click("#history > button")  # the form comes back as it was
    page.evaluate("sessionStorage.clear()")
    page.goto(real.url)
    page.click("#history > button")
    page.locator("#past [data-testid=cell-1-2]").click()
    page.wait_for_selector("#train-tokens", state="hidden", timeout=SOON)
    assert asked.get_by_label("norms").is_checked() and not asked.get_by_label("prompt").is_checked()
    assert page.locator("#train-steps input").input_value() == "6"


def test_results(visit, fake):
    page = visit(fake)
    tab(page, "Results")
    assert "ctplab demo" in page.locator("#results-told").inner_text()
    folder = fake.bench.runs / "atlas" / "report"
    folder.mkdir(parents=True)
    (folder / "demo.json").write_text(json.dumps(report()))
    tab(page, "Compare")
    tab(page, "Results")
    for place, expected in (("#levels", [1, 2, 2]), ("#recovery", [4, 4]), ("#exact", [2])):
        height, lengths = plot(page, place)
        assert height > 200 and lengths == expected
    assert plot(page, "#paper")[1][2:] == [4, 4, 4]
    page.locator("#transfer [data-testid=cell-0-1]").click()
    page.wait_for_function("document.querySelector('#cell')?.innerText.includes('soft--atlas-web.json')")


def test_tuned_models(visit, fake):
    page = visit(fake)
    tab(page, "Results")
    assert page.locator("#tuned-rows").count() == 0
    for name, what in (("first", "scales"), ("second", "norms")):
        folder = fake.bench.runs / "atlas" / "w4" / "tuned" / name
        folder.mkdir(parents=True)
        curve = [{"step": i, "loss": 3 - 0.1 * i, "validation": 2 - 0.1 * i if i % 2 else None} for i in range(4)]
        tuned = {"what": [what], "spec": ctp.PromptSpec(steps=4, lr=0.1).to_json(), "steps": 4, "best_step": 4}
        about = {"tag": f"w4+{what}-1a2b3c", "bytes": 1, "tuned": {**tuned, "corpus": "docs", "curve": curve}}
        (folder / "compression.json").write_text(json.dumps(about))
        os.utime(folder / "compression.json", (0, 0) if name == "first" else None)
    tab(page, "Compare")
    tab(page, "Results")
    page.wait_for_selector("#tuned-rows [data-testid=cell-1-0]")
    assert page.locator("#tuned-rows [data-testid=cell-0-1]").inner_text() == "norms"
    assert plot(page, "#tuned-curve")[1] == [4, 2]
    still(page, "#tuned-rows [data-testid=cell-1-0]")
    page.locator("#tuned-rows [data-testid=cell-1-0]").click()
    page.wait_for_function("document.querySelector('#tuned-told')?.innerText.includes('scales learned on docs')")


def test_sweeps(visit, fake):
    row = {"model": "atlas", "tag": "w3", "prompt": "p4", "learned_on": "atlas-web", "seed": 1, "scored_on": "docs"}
    row |= {"full": 2.0, "compressed": 4.0, "soft": None, "recovery": None}
    page = visit(fake)
    tab(page, "Results")
    assert page.locator("#sweep-rows").count() == 0
    kept = sweep_file(fake.bench.runs, "grid")
    kept.parent.mkdir(parents=True)
    failed = {"learn atlas w3": "no text"}
    kept.write_text(json.dumps({"name": "grid", "grid": "1 model", "rows": [row], "failed": failed}))
    tab(page, "Compare")
    tab(page, "Results")
    page.wait_for_selector("#sweep-rows [data-testid=cell-0-9]")
    assert page.locator("#sweep-rows [data-testid=cell-0-7]").inner_text() == "4.00"
    assert "learn atlas w3: no text" in page.locator("#sweep-told").inner_text()


def test_latency(visit, real):
    page = visit(real)
    tab(page, "Latency")
    page.fill("#latency-tokens textarea, #latency-tokens input", "0, 8")
    page.fill("#latency-repeats input", "1")
    page.click("#latency")
    page.wait_for_function("(document.querySelector('#speed .js-plotly-plot') || {data: []}).data.length === 3")
    assert plot(page, "#first-token")[1] == [1, 1, 1]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_narrow_pages_fit(visit, real, dark):
    page = visit(real, width=390, height=844, dark=dark)
    generate(page)
    for name in ("Compare", "Prompt tokens", "Train"):
        if page.get_by_role("tab", name=name).count():
            tab(page, name)
        page.wait_for_timeout(300)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert ("dark" in (page.locator("body").get_attribute("class") or "")) == dark
