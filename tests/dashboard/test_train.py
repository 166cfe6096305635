"""Training as a job of the server: whatever is learned becomes the folder that the command line makes of it."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import run_json

import ctplab as ctp
from ctplab import tensor_files
from ctplab.app import beforehand, learner
from ctplab.app.bench import Bench, Loaded
from ctplab.app.suited import suited
from ctplab.disk import read_json
from ctplab.formats.tuned import PROMPT, tuned_from
from ctplab.learning.saving import made_tuned, save_tuned
from ctplab.learning.tuned import RATE
from ctplab.models.fingerprints import weights_fingerprint
from ctplab.progress import silent


@pytest.fixture
def lab(real, tmp_path, text_file):
    """A bench with runs of its own, what it starts with, and how to ask for a short training."""

    def wanted(what, steps=6, rank=8, every=3):
        return learner.wanted_of(what, rank, f"file:{text_file}", 32, 4, steps, 2, 0.1, 1.0, "vocab-random", every, 0)

    bench = Bench(tmp_path / "runs")
    bench.models, bench.prompts = dict(real.bench.models), dict(real.bench.prompts)
    chosen = bench.chosen()
    return SimpleNamespace(bench=bench, chosen=chosen, small=bench.model(chosen.compressed), wanted=wanted)


def ended(job):
    while job.active:
        time.sleep(0.01)
    return job


def tensors(folder):
    return {f"{path.name} {name}": tensor for path in sorted(folder.glob("*.safetensors"))
            for name, tensor in tensor_files.read(path, finite=True).items()}  # fmt: skip


def test_a_tuned_folder_is_the_one_that_the_library_and_the_command_make(lab, tmp_path, capsys):
    want, small = lab.wanted(["norms", "scales"]), lab.small
    job = ended(learner.begin(lab.bench, lab.chosen, "mine", want, "me", "Where is Tulsa?"))
    assert job.state == "done" and job.done == job.total == 6, job.note
    assert [step for step, _ in job.said] == [1, 3, 6] and all(answer for _, answer in job.said)
    out = lab.bench.runs / "atlas" / small.name / "tuned" / "mine"
    assert job.result["names"] == {"compressed": "mine"} and job.result["folder"] == str(out)
    assert lab.bench.model("mine").tag.startswith(f"{small.tag}+scales+norms-")

    source = Path(small.source)
    model, tokenizer = ctp.load(source, device="cpu")
    text, full = ctp.corpus(want.corpus, tokenizer, 32), lab.bench.model("atlas").model
    how = (text.train, text.validation, want.spec)
    folder = tmp_path / "by hand"
    learned = ctp.learn_tuned(model, source, want.what, *how, teacher=full, progress=silent)
    made_from = made_tuned(want.what, 8, want.spec, model, small.source, want.corpus, text.train)
    save_tuned(learned, source, folder, made_from, want.spec, model, tokenizer)
    mine, other = tensors(out), tensors(folder)
    assert mine.keys() == other.keys() and all(mine[name].equal(other[name]) for name in mine)
    assert made_from.items() <= tuned_from(out).items()

    command = ("tune", source, "--corpus", want.corpus, "--steps", "2", "--batch", "2", "--seq-len", "32")
    run_json(capsys, *command, "--out", tmp_path / "cli")
    files = [sorted(path.name for path in place.iterdir()) for place in (out, tmp_path / "cli")]
    assert files[0] == files[1]
    keys = [sorted(read_json(place / "compression.json")["tuned"]) for place in (out, tmp_path / "cli")]
    assert keys[0] == keys[1]


def test_the_model_that_others_use_stays_as_it_is(lab):
    before = weights_fingerprint(lab.small.model)
    job = learner.begin(lab.bench, lab.chosen, "mine", lab.wanted(["scales", "soft"]))
    while job.active:
        assert not [name for name, _ in lab.small.model.named_parameters() if "parametrizations" in name]
        time.sleep(0.01)
    assert job.state == "done" and weights_fingerprint(lab.small.model) == before
    assert job.result["names"] == {"compressed": "mine", "prompt": "mine prompt"}
    rows = ctp.load_prompt(lab.bench.runs / "atlas" / lab.small.name / "tuned" / "mine" / PROMPT)
    assert rows.prefix.k == 4 and rows.info["tag"].rpartition("-")[0] == f"{lab.small.tag}+scales+soft"
    assert lab.bench.fit(lab.bench.chosen("atlas", "mine", "mine prompt")) == (True, [])


def test_stop_keeps_the_best_and_the_same_again_goes_on(lab):
    want = lab.wanted(["norms"], steps=40, every=2)
    job = learner.begin(lab.bench, lab.chosen, "mine", want)
    while len(job.points) < 4:
        time.sleep(0.005)
    job.cancel.set()
    assert ended(job).state == "done" and "stopped by hand" in job.note
    out = lab.bench.runs / "atlas" / lab.small.name / "tuned" / "mine"
    part = tuned_from(out)["steps"]
    assert 4 <= part < 40 and "mine" in learner.unfinished(lab.bench.runs)

    other = ended(learner.begin(lab.bench, lab.chosen, "mine", lab.wanted(["scales"], steps=40, every=2)))
    assert other.state == "failed" and "tuned otherwise: choose another name" in other.note
    assert tuned_from(out)["steps"] == part

    again = ended(learner.begin(lab.bench, lab.chosen, "mine", want))
    assert again.state == "done" and again.first > 0 and len(again.points) == 40, again.note
    assert tuned_from(out)["steps"] == 40 and learner.unfinished(lab.bench.runs) == ""
    assert sorted(path.name for path in out.parent.iterdir()) == ["mine", "mine.recipe.json"]
    with pytest.raises(ctp.InputError, match="a finished tuned model called 'mine' exists"):
        learner.begin(lab.bench, lab.chosen, "mine", want)


def test_the_same_name_may_be_a_prompt_and_a_tuned_model(lab):
    jobs = [learner.begin(lab.bench, lab.chosen, "mine", lab.wanted(what, steps=2)) for what in (["soft"], ["scales"])]
    assert [ended(job).result.get("names") for job in jobs] == [{"prompt": "mine"}, {"compressed": "mine"}]


def test_estimates_hold_for_what_is_chosen(lab):
    told = {what: beforehand.training(lab.bench, lab.chosen, lab.wanted(what.split("+"))) for what in
            ("soft", "scales+norms", "scales+soft")}  # fmt: skip
    model = f"tuned model **{lab.small.about['bytes'] / 1e6:.2f} MB**"
    assert model in told["scales+norms"] and "positions" not in told["scales+norms"]
    assert model in told["scales+soft"] and "4 positions of every input" in told["scales+soft"]
    assert model not in told["soft"] and "4 positions of every input" in told["soft"]
    assert "8.2 kB" in told["soft"]  # 4 rows of 256 values of 4 bytes, learned and as they began
    assert all("from 3 real steps" in line for line in told.values())


def test_the_form_takes_only_what_the_choice_asks_for(lab):
    default = ctp.PromptSpec()
    plain = learner.wanted_of(["scales"], None, "docs", 64, None, 40, 4, 0.1, 1, None, 10, 2)
    assert (plain.spec.tokens, plain.spec.init, plain.rank) == (default.tokens, default.init, 8)
    assert (plain.words, plain.short) == ("scales", "scales")
    joint = lab.wanted(["soft", "norms", "scales"])
    assert (joint.what, joint.words) == (("scales", "norms", "soft"), "scales, norms and prompt")
    assert joint.short == "scales+norms+k4" and lab.wanted(["soft"]).kinds == []
    for what in ([], ["everything"], "scales", None, [["soft"]]):
        with pytest.raises(
            ctp.InputError, match="what is learned: choose one or more of scales, norms, low-rank, codes, soft"
        ):
            lab.wanted(what)
    with pytest.raises(ctp.InputError, match="rank: give a number"):
        lab.wanted(["low-rank"], rank=10**9)


def test_a_model_that_cannot_be_tuned_is_told_in_one_line(lab):
    with pytest.raises(ctp.InputError, match="both low-rank and codes move its codes: choose one of them"):
        learner.begin(lab.bench, lab.chosen, "mine", lab.wanted(["low-rank", "codes"]))
    lab.bench.models["other"] = Loaded("other", "other", lab.small.model, lab.small.tokenizer, {"quant_method": "gptq"})
    for name in ("other", "atlas"):
        with pytest.raises(ctp.InputError, match="was not compressed by ctplab, so only a prompt can be learned"):
            beforehand.training(lab.bench, lab.bench.chosen("atlas", name), lab.wanted(["norms"]))


def test_the_rate_suits_the_choice(real):
    found = suited(real.bench, "atlas")
    assert found.rate(["soft"]) == found.lr
    assert found.rate(["scales"]) == found.rate(["scales", "soft"]) == RATE
