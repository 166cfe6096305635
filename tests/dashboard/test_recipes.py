"""A form takes the settings of what lies in the run folder, and gives the same spec again."""

import json

import gradio as gr

import ctplab as ctp
from ctplab.app import compress, learner, recipes
from ctplab.app.bench import Bench, Chosen, Loaded
from ctplab.disk import write_json


def test_a_compression_can_be_asked_for_again(tmp_path):
    for spec in (
        ctp.CompressionSpec(bits=4, sparsity=0.55, group_size=32, act_order=True),
        ctp.CompressionSpec(pattern="2:4", symmetric=True, bits=3),
        ctp.CompressionSpec(sparsity=0.625),
    ):
        recipe = {"corpus": "docs", "samples": 8, "seq_len": 64, "seed": 3}
        folder = tmp_path / "atlas" / spec.tag
        write_json({"spec": spec.to_json(), "recipe": recipe}, folder / "compression.json")
        seed, corpus, samples, seq_len, *form = recipes.compress_form(recipes.compressed(tmp_path)[f"atlas/{spec.tag}"])
        assert (seed, corpus, samples, seq_len) == (3, "docs", 8, 64)
        assert compress.spec_of(*form) == spec


def test_a_training_can_be_asked_for_again(tmp_path):
    bench = Bench(tmp_path)
    bench.models["atlas"] = Loaded("atlas", "atlas", None, None, {})
    for what in (["soft"], ["scales"], ["norms", "scales"], ["low-rank", "soft"]):
        wanted = learner.wanted_of(what, 4, "docs", 64, 8, 40, 4, 0.05, 0.5, "vocab-first", 10, 2)
        out, *_, recipe = learner.places(bench, Chosen("atlas", "w3", ""), wanted, "mine")
        learner.keep_recipe(wanted, recipe)
        found = recipes.trained(tmp_path)[str(out.relative_to(tmp_path))]
        assert learner.wanted_of(*recipes.train_form(found)) == wanted
        recipe.unlink()


def test_an_older_recipe_is_a_prompts(tmp_path):
    spec = ctp.PromptSpec(tokens=8, steps=40, batch=4, evaluate_every=10)
    write_json({"spec": spec.to_json(), "corpus": "docs", "seq_len": 64}, tmp_path / "a/w3/prompts/mine/recipe.json")
    what, rank, corpus, *_ = recipes.train_form(recipes.trained(tmp_path)["a/w3/prompts/mine"])
    assert (what, rank, corpus) == (["soft"], gr.skip(), "docs")


def test_what_is_damaged_or_of_others_is_left_out(tmp_path):
    folder = tmp_path / "atlas" / "w3"
    folder.mkdir(parents=True)
    (folder / "compression.json").write_text("{")
    assert recipes.compressed(tmp_path) == {}
    (folder / "compression.json").write_text(json.dumps({"spec": {}}))
    assert recipes.compressed(tmp_path) == {}
    assert recipes.train_form({})[1] == gr.skip()
