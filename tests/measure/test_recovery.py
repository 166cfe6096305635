"""Recovery with its controls, over seeds, and in sentences; and the transfer matrix."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import scored, tiny

import ctplab as ctp
from ctplab.disk import kept_in
from ctplab.formats.prompt_file import SavedPrompt
from ctplab.learning.lora import same_budget
from ctplab.measure.recovery import from_scores, in_words, over_seeds, recover
from ctplab.measure.tasks.transferred import transfer_tasks
from ctplab.measure.transfer import Target, home, transfer
from ctplab.models.fingerprints import base_fingerprint, tokenizer_fingerprint
from ctplab.progress import silent
from ctplab.prompts import prefix
from ctplab.runs.controls import recipe_of, recover_with_controls
from ctplab.runs.store import Store
from ctplab.runs.study import Study
from ctplab.show import tables
from ctplab.text import corpora


@pytest.fixture
def hurt():
    """The tiny LLaMA with noise on its weights: what compression might leave of it."""
    model = tiny("llama")
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "proj" in name:
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    return model


def from_sums(sums):
    return from_scores({name: scored(nll) for name, nll in sums.items()})


def compared(full, small, tokenizer, soft, **more):
    return ctp.arms(full, small, "Be good.", soft, controls=True, tokenizer=tokenizer, **more)


def test_one_call_gives_every_arm_on_the_same_targets(llama, hurt, tokenizer, web):
    soft, start = prefix.random_rows(hurt, 6, seed=5), prefix.random_rows(hurt, 6, name="init")
    own = prefix.random_rows(llama, 6, seed=9)
    arms = compared(llama, hurt, tokenizer, soft, initial=start, text=web.train.stream, full_own=own)
    assert [a.name for a in arms] == [
        "full", "compressed", "hard", "soft", "bos", "random", "init", "text", "full+soft", "full+own"
    ]  # fmt: skip
    assert {a.name: a.prefix.k for a in arms if a.name in ("random", "init", "text")} == dict.fromkeys(
        ("random", "init", "text"), 6
    )
    on_full = {a.name for a in arms if a.model is llama}
    assert on_full == {"full", "full+soft", "full+own"}
    lora = ctp.Arm("lora", llama, prefix.none(llama))  # an adapter is a model of its own, here a perfect one
    found = recover([*arms, lora], web.test, limit=5)
    for arm in [*arms, lora]:
        score = ctp.perplexity(arm, web.test, limit=5)
        assert (found[arm.name].nll, found[arm.name].n_tokens) == (pytest.approx(score.nll), 5 * 47)
        interval = found[arm.name].recovery
        assert interval.low <= interval.value <= interval.high
    assert found["full"].recovery.value == found["lora"].recovery.value == pytest.approx(1)
    assert found["compressed"].recovery.value == 0
    gap = found["compressed"].nll - found["full"].nll
    assert found["soft"].recovery.value == pytest.approx((found["compressed"].nll - found["soft"].nll) / gap)


def test_the_words_follow_from_the_numbers():
    n = 40
    base = 2 + torch.rand(n, generator=torch.Generator().manual_seed(0))
    sums = {"full": base, "compressed": base + 1, "soft": base + 0.5, "bos": base + 0.9}
    sums |= {"full+soft": base - 0.1, "full+own": base - 0.2}
    words = " ".join(in_words(from_sums(sums)))
    assert "costs 1.000 nats" in words and "The prompt closes the gap: +50% [+50, +50]" in words
    assert "bos does best: +10%" in words and "gains 0.100 nats a token from the same prompt" in words
    assert "70% of the gap remains" in words  # (0.5 + 0.2) / 1
    assert "Of the 0.500 nats" in words and "0.200 are adaptation" in words and "the other 0.300 are recovery" in words
    assert "no recovery beyond that" in " ".join(in_words(from_sums(sums | {"full+own": base - 0.6})))
    assert "LoRA" not in words and "closes +25%" in in_words(from_sums(sums | {"lora": base + 0.75}))[-1]
    assert "widens" in " ".join(in_words(from_sums(sums | {"soft": base + 2})))
    assert in_words(from_sums({"full": base + 1, "compressed": base})) == [
        "Compression did not raise the NLL here: there is nothing to recover."
    ]


def test_seeds_give_mean_and_spread():
    base = torch.ones(8)
    runs = [from_sums({"full": base, "compressed": base + 1, "soft": base + x}) for x in (0.2, 0.4, 0.6)]
    spread = over_seeds(runs)["soft"]
    assert (spread.mean, spread.sd, spread.n) == (pytest.approx(0.6), pytest.approx(0.2), 3)  # of 0.8, 0.6, 0.4
    with pytest.raises(ctp.InputError, match="at least two"):
        over_seeds(runs[:1])


def test_recovery_refuses_what_it_cannot_compare(llama, hurt, tokenizer, web):
    arms = compared(llama, hurt, tokenizer, prefix.random_rows(hurt, 4))
    with pytest.raises(ctp.InputError, match="'full' and 'compressed'"):
        recover(arms[1:], web.test, limit=2)
    with pytest.raises(ctp.InputError, match="a name of its own"):
        recover([*arms, arms[0]], web.test, limit=2)
    with pytest.raises(ctp.InputError, match="needs 4 tokens of text"):
        compared(llama, hurt, tokenizer, prefix.random_rows(hurt, 4), text=torch.tensor([5]))


def test_an_interrupted_recovery_goes_on(llama, hurt, tokenizer, web, tmp_path):
    """Arms that were scored are not scored again; other windows or other rows are."""
    arms = compared(llama, hurt, tokenizer, prefix.random_rows(hurt, 4))
    fresh = []

    def keep(name, key, compute):
        return kept_in(tmp_path)(name, key, lambda: fresh.append(name) or compute())

    recover(arms[:3], web.test, limit=3, keep=keep)
    whole = recover(arms, web.test, limit=3, keep=keep)
    assert len(fresh) == len(set(fresh)) == len(arms)
    assert whole == recover(arms, web.test, limit=3)
    recover(arms, web.test, limit=2, keep=keep)
    assert len(fresh) == 2 * len(arms)


def saved(model, tokenizer, tag, k=4, seed=0):
    rows = prefix.random_rows(model, k, seed)
    info = {"base": "tiny", "tag": tag, "base_fingerprint": base_fingerprint(model)}
    return SavedPrompt(rows, rows, info | {"tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)})


def test_the_matrix_has_every_cell_its_interval_and_its_reason(llama, hurt, tokenizer, tmp_path):
    sources = {"w3": saved(hurt, tokenizer, "w3"), "w4": saved(hurt, tokenizer, "w4", seed=1)}
    foreign = saved(hurt, tokenizer, "w3")
    sources["foreign"] = replace(foreign, info=foreign.info | {"tokenizer_fingerprint": "other"})
    sources["long"] = saved(hurt, tokenizer, "w3", k=240)
    opt = tiny("opt")  # width 16
    loaded = []

    def target(name, model):
        return Target(name, home({"base": "tiny", "tag": name}), lambda: loaded.append(name) or (model, tokenizer))

    targets = [target("w3", hurt), target("full", llama), target("opt", opt)]
    arguments = (sources, targets, ["atlas-web", "atlas-news"])
    cells = transfer(*arguments, seq_len=32, limit=4, keep=kept_in(tmp_path))
    assert len(cells) == 3 * 2 * (1 + len(sources)) and loaded == ["w3", "full", "opt"]
    at = {(c.source, c.target, c.corpus): c for c in cells}
    windows = ctp.corpus("atlas-news", tokenizer, 32).test.windows[:4]
    cell = at["w4", "full", "atlas-news"]
    assert cell.ppl == pytest.approx(ctp.perplexity(ctp.Arm("x", llama, sources["w4"].prefix), windows).ppl)
    mean = (cell.nll - at["none", "full", "atlas-news"].nll) / (4 * 31)
    assert cell.change.value == pytest.approx(mean) and cell.change.low <= mean <= cell.change.high
    assert {key[:2] for key, c in at.items() if c.diagonal and c.refused is None} == {("w3", "w3")}
    assert "another tokenizer" in at["foreign", "w3", "atlas-web"].refused
    assert "240 prompt tokens + 32" in at["long", "w3", "atlas-web"].refused
    assert "width 32, the model 16" in at["w3", "opt", "atlas-web"].refused
    assert at["w3", "opt", "atlas-web"].ppl is None and at["none", "opt", "atlas-web"].ppl > 1

    def forbidden(*_):
        raise AssertionError("a cell was computed twice")

    kept = kept_in(tmp_path)
    assert transfer(*arguments, seq_len=32, limit=4, keep=lambda n, k, _: kept(n, k, forbidden)) == cells


@pytest.fixture
def little(monkeypatch, tokenizer):
    """``atlas-web`` with few documents."""
    monkeypatch.setattr(corpora, "ATLAS_DOCUMENTS", {"train": 60, "validation": 12, "test": 12})
    return ctp.corpus("atlas-web", tokenizer, 48)


def test_learned_controls_follow_the_prompts_recipe_and_are_kept(llama, hurt, tokenizer, little, tmp_path, monkeypatch):
    PeftModel = pytest.importorskip("peft", reason="LoRA needs PEFT (pip install 'ctplab[baselines]')").PeftModel
    study = Study(Store(tmp_path, "tiny"), llama, tokenizer, silent)
    spec = ctp.PromptSpec(tokens=4, steps=6, batch=4, warmup=1, evaluate_every=3, validation_windows=4)
    soft = study.prompt("w3", "p", hurt, little.train, little.validation, spec)
    news = ctp.corpus("atlas-news", tokenizer, 40)
    weights = [p.clone() for p in hurt.parameters()]
    arguments = (study, "w3", hurt, soft, [little, news], kept_in(study.store.recovery("w3", "p")))
    done = recover_with_controls(*arguments, limit=3)
    assert not done.left_out and list(done.corpora) == ["atlas-web", "atlas-news"]
    assert {"full+own", "lora", "init", "text"} <= set(done.corpora["atlas-news"])
    assert all(torch.equal(a, b) for a, b in zip(weights, hurt.parameters(), strict=True))  # the adapter is gone
    (own,) = (study.store.compressed("full") / "prompts").iterdir()
    own = ctp.load_prompt(own)
    assert own.info["spec"] == soft.info["spec"] and own.info["tag"] == "full"
    behind = ctp.perplexity(ctp.Arm("x", llama, own.prefix), news.test, limit=3)
    assert done.corpora["atlas-news"]["full+own"].ppl == pytest.approx(behind.ppl)
    (kept,) = (study.store.compressed("w3") / "adapters").iterdir()
    adapter = ctp.LoraAdapter(hurt, ctp.LoraSpec())  # what is kept is what was scored
    adapter.load(kept)
    alone = ctp.perplexity(ctp.Arm("lora", hurt, prefix.none(hurt)), news.test, limit=3)
    adapter.remove()
    assert done.corpora["atlas-news"]["lora"].ppl == pytest.approx(alone.ppl)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by old names
        theirs = PeftModel.from_pretrained(hurt, kept).eval()  # reads the folder as well
    assert ctp.perplexity(ctp.Arm("peft", theirs, prefix.none(hurt)), news.test, limit=3).ppl == alone.ppl
    theirs.unload()

    def forbidden(*_, **__):
        raise AssertionError("a control was learned twice")

    monkeypatch.setattr("ctplab.runs.study.rows.learn", forbidden)
    monkeypatch.setattr("ctplab.runs.study.lora.learn_lora", forbidden)
    monkeypatch.setattr("ctplab.measure.perplexity._summed_nll", forbidden)
    assert recover_with_controls(*arguments, limit=3) == done


def test_an_interrupted_adapter_goes_on_where_it_was(hurt, llama, tokenizer, little, tmp_path):
    pytest.importorskip("peft", reason="LoRA needs PEFT (pip install 'ctplab[baselines]')")
    spec = ctp.PromptSpec(steps=6, batch=2, warmup=1, lr=0.01, evaluate_every=2, validation_windows=2)

    def stop_at_five(items, total=None, label=""):
        for i, item in enumerate(items):
            if i == 4:
                raise KeyboardInterrupt
            yield item

    def curve(name, progress):
        study = Study(Store(tmp_path / name, "tiny"), llama, tokenizer, progress)
        with study.adapted("w3", "a", hurt, little.train, little.validation, spec):
            kept = json.loads((study.store.adapter("w3", "a") / "adapter.json").read_text())
        return [step["loss"] for step in kept["curve"]]

    with pytest.raises(KeyboardInterrupt):
        curve("resumed", stop_at_five)
    assert not any("lora" in name for name, _ in hurt.named_modules())
    assert curve("resumed", silent) == curve("whole", silent)


def test_lora_gets_a_prompts_budget_and_the_papers_rate():
    paper, lora = ctp.PromptSpec.paper(), same_budget(ctp.PromptSpec.paper())
    assert (lora.steps, lora.batch, lora.kl, lora.seed) == (paper.steps, paper.batch, paper.kl, paper.seed)
    assert lora.lr == ctp.PromptSpec.lora().lr == 2e-4 and lora.weight_decay == 0


def test_controls_that_cannot_be_learned_say_why(llama, tokenizer, little):
    made = saved(llama, tokenizer, "w3")
    with pytest.raises(ctp.InputError, match="by which recipe"):
        recipe_of(made, tokenizer)
    info = made.info | {"spec": ctp.PromptSpec(tokens=4).to_json(), "corpus": "atlas-web", "seq_len": 48}
    told = {"corpus_fingerprint": little.train.fingerprint}
    spec, train, validation = recipe_of(replace(made, info=info | told), tokenizer)
    assert (spec.tokens, train.fingerprint, validation.seq_len) == (4, little.train.fingerprint, 48)
    with pytest.raises(ctp.InputError, match="not the same text"):
        recipe_of(replace(made, info=info | {"corpus_fingerprint": "other"}), tokenizer)
    with pytest.raises(ctp.InputError, match="damaged"):
        recipe_of(replace(made, info=info | told | {"spec": info["spec"] | {"steps": "many"}}), tokenizer)
    with pytest.raises(ctp.InputError, match="fresh start"):
        recipe_of(replace(made, info=info | told | {"kind": "kv"}), tokenizer)


def test_the_task_matrix_has_its_intervals_paired_tests_and_reasons(llama, hurt, tokenizer, tmp_path):
    sources = {"w3": saved(hurt, tokenizer, "w3")}
    sources["foreign"] = replace(sources["w3"], info=sources["w3"].info | {"tokenizer_fingerprint": "other"})
    loaded = [("w3", hurt), ("full", llama)]
    targets = [
        Target(n, home({"base": "tiny", "tag": n}), lambda model=model: (model, tokenizer)) for n, model in loaded
    ]
    asked = []

    def keep(name, key, compute):
        return kept_in(tmp_path)(name, key, lambda: asked.append(name) or compute())

    cells = transfer_tasks(sources, targets, ["atlas"], limit=6, keep=keep)
    assert len(asked) == 4 and transfer_tasks(sources, targets, ["atlas"], limit=6, keep=keep) == cells
    assert len(asked) == 4  # nothing was asked twice
    at = {(c.source, c.target): c for c in cells}
    assert len(cells) == len(at) == 6
    assert {key for key, c in at.items() if c.diagonal and not c.refused} == {("w3", "w3")}
    cell, alone = at["w3", "full"], at["none", "full"]
    assert (cell.metric, cell.n, alone.against_none) == ("exact_match", 6, None)
    assert cell.share.low <= cell.share.value <= cell.share.high
    assert cell.against_none.difference.value == pytest.approx(cell.share.value - alone.share.value)
    assert "another tokenizer" in at["foreign", "full"].refused and at["foreign", "full"].share is None
    told = tables.task_matrix_table(cells)
    assert told.count("refused") == 2 and " *" in told
