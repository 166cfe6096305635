"""The export as a download: what arrives is the folder that the command line writes."""

import urllib.error
import urllib.request
from zipfile import ZipFile

import pytest

import ctplab as ctp
from ctplab.app import export
from ctplab.app.bench import Chosen

SOON = 60_000  # ms: patience on a busy machine, no timing of ours


def test_a_person_downloads_the_model_with_its_prompt(real, visit, tmp_path):
    page = visit(real)
    page.get_by_role("tab", name="Prompt tokens").click()
    page.get_by_text("Export: the compressed model with the prompt in its vocabulary").click()
    page.fill("#export-name input, #export-name textarea", "mine")
    with page.expect_download(timeout=SOON) as waiting:
        page.click("#export-write")
    assert waiting.value.suggested_filename == "mine.zip"
    with ZipFile(waiting.value.path()) as packed:
        packed.extractall(tmp_path)
    assert "100 soft tokens" in page.inner_text("#export-told")
    chosen = real.bench.chosen()
    saved = real.bench.prompt(chosen.prompt)
    ctp.import_prompt(tmp_path / "mine", tmp_path / "p")
    assert ctp.load_prompt(tmp_path / "p").prefix.rows.equal(saved.prefix.rows)
    _, tokenizer = ctp.load(tmp_path / "mine", device="cpu")
    assert len(tokenizer("hello")["input_ids"]) > saved.prefix.k
    page.click("#export-write")  # the same name again
    page.get_by_text("exists already").wait_for(timeout=SOON)


def test_only_what_was_exported_is_served(real):
    for name in ("nothing.zip", "..%2F..%2Fprompt.json"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{real.url}/export/{name}")
        assert caught.value.code == 404
        caught.value.close()


def test_an_export_needs_a_prompt_and_a_name(real):
    first = real.bench.chosen()
    for chosen, name in ((Chosen(first.full, first.compressed, ""), "x"), (first, " ")):
        with pytest.raises(ctp.InputError, match="choose a prompt, and give"):
            export.write(real.bench, chosen, name, "dense")
