"""Prompts as tokens of the vocabulary: what transformers makes of the folder is our arm."""

import json
import resource
from pathlib import Path

import pytest
import torch
from commands import refused, run_json
from conftest import VOCABULARY, any_tiny, tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import ctplab as ctp
from ctplab.disk import data_dir
from ctplab.formats import prompt_file, token_front, token_rows, tokens
from ctplab.models.anatomy import embed, embeddings
from ctplab.prompts import prefix
from ctplab.prompts.compiled import compile_prefix
from ctplab.prompts.head import logits_after

K = 7
TEXTS = ("The capital of France is", "In 1912, a ship", "Gold has the atomic number 79 and")
#: fp32; a prompt that is tokens is computed with the text, a compiled one before it: two orders of summation.
SUMMATION = 2e-4
#: The prompt's rows in half precision, 2^-11 relative, through two blocks of logits up to 20.
HALF = 0.02
EVERY = ("llama", "opt", "bloom", "neox", "gpt2", "GemmaConfig", "Gemma2Config", "Gemma3TextConfig", "Qwen2Config")


def prompt_of(model, tokenizer, k=K, **info) -> prompt_file.SavedPrompt:
    rows = prefix.random_rows(model, k, name="soft")
    moved = prefix.Prefix("soft", rows.rows * 1.5 + 0.1, rows.ids)
    about = {"base": "tiny", "tag": "full", **prompt_file.made_for(model, tokenizer), **info}
    return prompt_file.SavedPrompt(moved, rows, about)


def stored(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def say(model, tokenizer, texts, n=12) -> list[str]:
    found = tokenizer(list(texts), return_tensors="pt", padding=True)
    out = model.generate(**found, max_new_tokens=n, do_sample=False)
    return [tokenizer.decode(row[found["input_ids"].shape[1] :], skip_special_tokens=True) for row in out]


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_transformers_reads_our_arm(family, tokenizer, tmp_path):
    """Logits and greedy text, alone and in a padded batch, from nothing but the folder and plain text."""
    model = any_tiny(family)
    tokenizer = AutoTokenizer.from_pretrained(stored(model, tokenizer, tmp_path / "m"))  # Qwen2's class adds tokens
    saved = prompt_of(model, tokenizer)
    found = ctp.export_tokens(saved, tmp_path / "m", tmp_path / "t", dtype="float32")
    theirs, their_tokenizer = read(tmp_path / "t")
    assert embeddings(theirs).shape[0] == found["rows"]["after"] == theirs.config.vocab_size == 2112  # 33 x 64
    arm = ctp.Arm("soft", model, saved.prefix)
    ids = tokenizer(TEXTS[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    want = logits_after(model, compile_prefix(model, saved.prefix), ids)
    inputs = their_tokenizer(TEXTS[0], return_tensors="pt")
    assert inputs["input_ids"].shape[1] == K + ids.shape[1]
    got = theirs(**inputs).logits[:, K:]
    torch.testing.assert_close(got[..., :VOCABULARY], want, rtol=SUMMATION, atol=SUMMATION)
    assert (got[..., VOCABULARY:].amax(-1) < got[..., :VOCABULARY].amax(-1)).all()
    answers = [a.text for a in ctp.generate(arm, tokenizer, list(TEXTS), max_new_tokens=12, start="none")]
    assert say(theirs, their_tokenizer, TEXTS) == answers
    assert [say(theirs, their_tokenizer, [text])[0] for text in TEXTS] == answers


@torch.no_grad()
def test_the_shipped_prompt_in_half_precision(tmp_path):
    home = data_dir() / "w4-s55"
    saved = ctp.load_prompt(data_dir() / "prompt")
    found = ctp.export_tokens(saved, home, tmp_path / "t")
    small, tokenizer = ctp.load(home, device="cpu")
    theirs, their_tokenizer = read(tmp_path / "t")
    ids = tokenizer(TEXTS[2], add_special_tokens=False, return_tensors="pt")["input_ids"]
    want = logits_after(small, compile_prefix(small, saved.prefix), ids)
    got = theirs(**their_tokenizer(TEXTS[2], return_tensors="pt")).logits[:, saved.prefix.k :]
    torch.testing.assert_close(got[..., : want.shape[-1]], want, rtol=HALF, atol=HALF)
    arm = ctp.Arm("soft", small, saved.prefix)
    answers = [a.text for a in ctp.generate(arm, tokenizer, list(TEXTS), max_new_tokens=64, start="none")]
    assert say(theirs, their_tokenizer, TEXTS, 64) == answers
    # real text, sampled without anyone suppressing: the bound that the README states, with room for other texts
    said = got.softmax(-1)[..., want.shape[-1] :].sum(-1)
    assert said.max() < 10 * found["probability"] < 1e-2


def test_the_recipe_for_transformers_runs_as_written(tmp_path, monkeypatch, capsys):
    """docs/serving-tokens.md, on the folder that it calls ``served``."""
    page = (Path(__file__).parents[2] / "docs" / "serving-tokens.md").read_text()
    code = page.split("**transformers.**")[1].split("```python\n")[1].split("```")[0]
    ctp.export_tokens(ctp.load_prompt(data_dir() / "prompt"), data_dir() / "w4-s55", tmp_path / "served")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "serving-tokens.md", "exec"), {})
    assert "The capital of France is" in capsys.readouterr().out


def test_a_silent_row_never_wins():
    """The algebra: for any hidden state the new logit is at most the largest old one, and each exp at most the mean."""
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(50, 8, generator=draw, dtype=torch.float64)
    quiet, ids = torch.tensor([3, 17, 40]), [12, 50, 51]
    grown = token_rows.with_silent_rows(head, quiet, ids, 56)
    assert torch.equal(grown[:12], head[:12]) and torch.equal(grown[13:50], head[13:])
    h = torch.randn(1000, 8, generator=draw, dtype=torch.float64) * 20
    logits = h @ grown.T
    silent = token_rows.never_chosen(ids, 50, 56)
    assert silent == [12, 50, 51, 52, 53, 54, 55]
    old = logits[:, [i for i in range(50) if i != 12]]
    assert (logits[:, silent].amax(1) < old.amax(1)).all()
    mean = logits[:, quiet].exp().mean(1, keepdim=True)
    assert (logits[:, silent].exp() <= mean * (1 + 1e-9)).all()  # Jensen; rounding of exp in float64
    biases = token_rows.with_silent_biases(torch.zeros(50), ids, 56)
    assert (biases[silent] == token_rows.NEVER).all() and biases.count_nonzero() == len(silent)


@torch.no_grad()
def test_a_prompt_that_would_speak_stays_silent(llama, tokenizer, tmp_path):
    """Rows a hundred times as long as the vocabulary's: a tied head would say nothing else."""
    loud = prompt_of(llama, tokenizer)
    rows = torch.randn(K, 32, generator=torch.Generator().manual_seed(1)) * 100
    loud = prompt_file.SavedPrompt(prefix.Prefix("soft", rows), None, loud.info)
    llama.config.tie_word_embeddings = True
    llama.lm_head.weight = llama.model.embed_tokens.weight
    stored(llama, tokenizer, tmp_path / "m")
    found = ctp.export_tokens(loud, tmp_path / "m", tmp_path / "t", dtype="float32")
    assert found["head"] == "untied"
    theirs, their_tokenizer = read(tmp_path / "t")
    inputs = their_tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    soft = set(found["ids"])
    theirs.generation_config.suppress_tokens = None  # as a reader that does not know of it
    out = theirs.generate(**inputs, max_new_tokens=40, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert not soft & set(out.flatten().tolist())
    again, _ = read(tmp_path / "t")
    assert again.generation_config.suppress_tokens == found["silent"]
    torch.manual_seed(0)
    drawn = again.generate(**inputs, max_new_tokens=40, do_sample=True, temperature=5.0, top_k=0)
    assert not soft & set(drawn[:, inputs["input_ids"].shape[1] :].flatten().tolist())
    suppressed = again.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, output_scores=True).scores[0]
    assert (suppressed[:, found["silent"]] == -torch.inf).all()


def test_texts_conversations_and_both_encoded_twice(llama, tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(stored(llama, tokenizer, tmp_path / "m"))
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "m")
    saved = prompt_of(llama, tokenizer)
    found = ctp.export_tokens(saved, tmp_path / "m", tmp_path / "t")
    assert found["warnings"] == []
    again = AutoTokenizer.from_pretrained(tmp_path / "t")
    soft = found["ids"]
    for text in TEXTS:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = again(text)["input_ids"]
        assert ids == soft + own
        assert again(text, add_special_tokens=False)["input_ids"] == own
        assert again.decode(ids, skip_special_tokens=True) == text
        assert again(again.decode(ids, skip_special_tokens=True))["input_ids"] == ids
        assert again(again.decode(ids), add_special_tokens=False)["input_ids"] == ids
    pair = again(TEXTS[0], TEXTS[1])["input_ids"]
    assert pair == soft + [i for t in TEXTS[:2] for i in tokenizer(t, add_special_tokens=False)["input_ids"]]
    cut = again(" ".join(TEXTS), truncation=True, max_length=K + 3)["input_ids"]
    assert cut[:K] == soft and len(cut) == K + 3
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    own = tokenizer.apply_chat_template(talk)["input_ids"]
    assert again.apply_chat_template(talk)["input_ids"] == soft + own
    rendered = again.apply_chat_template(talk, tokenize=False)
    assert again(rendered, add_special_tokens=False)["input_ids"] == soft + own
    assert tokenizer.chat_template in again.chat_template and tokenizer.chat_template != again.chat_template
    with pytest.raises(ctp.InputError, match="has soft tokens already"):
        ctp.export_tokens(prompt_of(tiny("llama"), again), tmp_path / "t", tmp_path / "twice", force=True)
    # saved again by transformers: the same
    again.save_pretrained(tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(tmp_path / "copy")(TEXTS[0])["input_ids"] == again(TEXTS[0])["input_ids"]


@torch.no_grad()
def test_prepend_never_leaves_the_model_alone_and_the_tokens_to_the_caller(llama, tokenizer, tmp_path):
    saved = prompt_of(llama, tokenizer)
    stored(llama, tokenizer, tmp_path / "m")
    found = ctp.export_tokens(saved, tmp_path / "m", tmp_path / "t", prepend="never", dtype="float32")
    theirs, again = read(tmp_path / "t")
    assert again(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    text = "".join(found["tokens"]) + TEXTS[0]
    inputs = again(text, add_special_tokens=False, return_tensors="pt")
    ids = tokenizer(TEXTS[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    want = logits_after(llama, compile_prefix(llama, saved.prefix), ids)
    got = theirs(**inputs).logits[:, K:, :VOCABULARY]
    torch.testing.assert_close(got, want, rtol=SUMMATION, atol=SUMMATION)
    assert "add_special_tokens=False" in (tmp_path / "t" / "README.md").read_text()


def test_reserved_rows_come_first(llama, tokenizer, tmp_path):
    """Two of three free tokens are used; the third has a role. The vocabulary does not grow where they suffice."""
    home = AutoTokenizer.from_pretrained(stored(llama, tokenizer, tmp_path / "m"))
    vocabulary = home.get_vocab()
    spare = [f"<|reserved_special_token_{i}|>" for i in range(3)]
    whole = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    last = sorted(vocabulary, key=vocabulary.__getitem__)[-3:]
    whole["model"]["vocab"] = {spare[last.index(t)] if t in last else t: i for t, i in vocabulary.items()}
    whole["model"]["merges"] = [m for m in whole["model"]["merges"] if "".join(m) not in last]
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(whole))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"pad_token_id": vocabulary[last[1]]}))
    home = AutoTokenizer.from_pretrained(tmp_path / "m")
    two = prompt_of(llama, home, k=2)
    found = ctp.export_tokens(two, tmp_path / "m", tmp_path / "two", reserved=True)
    assert found["tokens"] == [spare[0], spare[2]] and found["rows"] == {"before": 2048, "after": 2048}
    again = AutoTokenizer.from_pretrained(tmp_path / "two")
    own = home(TEXTS[0], add_special_tokens=False)["input_ids"]
    assert again(TEXTS[0])["input_ids"] == [*found["ids"], *own]
    assert again.decode(again(TEXTS[0])["input_ids"], skip_special_tokens=True) == TEXTS[0]
    found = ctp.export_tokens(prompt_of(llama, home, k=4), tmp_path / "m", tmp_path / "four", reserved=True, pad_to=1)
    assert found["tokens"] == [spare[0], spare[2], "<|soft_2|>", "<|soft_3|>"] and found["rows"]["after"] == 2050
    assert torch.equal(tokens.read(tmp_path / "two").prefix.rows, two.prefix.rows)


def test_padding_rows_are_used_if_nothing_else_uses_them(tokenizer, tmp_path):
    config = tiny("llama").config
    config.vocab_size = VOCABULARY + 4  # four rows behind the tokenizer's last token
    torch.manual_seed(0)
    model = type(tiny("llama"))(config).eval()
    saved = prompt_of(model, tokenizer)
    stored(model, tokenizer, tmp_path / "m")
    found = ctp.export_tokens(saved, tmp_path / "m", tmp_path / "t", pad_to=8)
    assert found["ids"] == list(range(VOCABULARY, VOCABULARY + K)) and found["rows"]["after"] == 2056
    config.pad_token_id = VOCABULARY + 2
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ctp.InputError, match=r"row 2050, where a soft token would go, is in use.*pad_token_id"):
        ctp.export_tokens(saved, tmp_path / "m", tmp_path / "u")
    assert not list(tmp_path.glob("u*"))


@pytest.mark.parametrize("weights", ["dense", "gptq", "gptq_v2"])
@torch.no_grad()
def test_compressed_weights_dense_and_packed(weights, web, tokenizer, tmp_path, quiet):
    spec = ctp.CompressionSpec(bits=4, symmetric=True)
    small, report = ctp.compress(tiny("gpt2"), web.train.sample(4), spec, **quiet)
    ctp.save(small, tmp_path / "m", tokenizer, report, "tiny")
    saved = prompt_of(small, tokenizer)
    found = ctp.export_tokens(saved, tmp_path / "m", tmp_path / "t", weights=weights)
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    assert config.get("quantization_config", {}).get("checkpoint_format") == (None if weights == "dense" else weights)
    theirs, again = ctp.load(tmp_path / "t", device="cpu")  # our own reader; GPTQModel in interop/
    ids = tokenizer(TEXTS[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    want = logits_after(small, compile_prefix(small, saved.prefix), ids)
    got = theirs(**again(TEXTS[0], return_tensors="pt")).logits[:, K:, :VOCABULARY]
    torch.testing.assert_close(got, want, rtol=HALF, atol=HALF)
    assert torch.equal(tokens.read(tmp_path / "t").prefix.rows, saved.prefix.rows)
    if weights == "gptq":  # a folder of others', taken as it is
        ctp.export(tmp_path / "m", tmp_path / "g", "gptq")
        ctp.export_tokens(saved, tmp_path / "g", tmp_path / "u", weights="gptq")
        a, b = (load_file(tmp_path / name / "model.safetensors") for name in "tu")
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        with pytest.raises(ctp.InputError, match="holds gptq weights"):
            ctp.export_tokens(saved, tmp_path / "g", tmp_path / "v", weights="gptq_v2")
    assert found["tag"] == spec.tag


def test_round_trip_by_the_command_line(capsys, tmp_path):
    home, prompt = data_dir() / "w4-s55", data_dir() / "prompt"
    found = run_json(capsys, "export", "prompt", prompt, "--model", home, "--to", "tokens", "--out", tmp_path / "t")
    assert found["k"] == 100 and found["rows"] == {"before": 2048, "after": 2176} and found["format"] == "tokens"
    back = run_json(capsys, "import", "prompt", tmp_path / "t", "--out", tmp_path / "p")
    assert (back["imported_from"], back["base"], back["claimed"]) == ("tokens", "atlas", None)
    names = [prompt / "prompt.safetensors", tmp_path / "p" / "prompt.safetensors"]
    assert names[0].read_bytes() == names[1].read_bytes()
    run_json(capsys, "import", "prompt", tmp_path / "t", "--model", home, "--out", tmp_path / "q")
    said = refused(capsys, "export", "prompt", prompt, "--model", home, "--to", "tokens", "--out", tmp_path / "t")
    assert "exists already" in said
    said = refused(
        capsys, "export", "prompt", prompt, "--model", home, "--to", "peft", "--out", tmp_path / "x", "--reserved"
    )
    assert "--reserved goes with --to tokens" in said


def test_a_changed_folder_does_not_pass_for_the_prompt(llama, tokenizer, tmp_path):
    stored(llama, tokenizer, tmp_path / "m")
    ctp.export_tokens(prompt_of(llama, tokenizer), tmp_path / "m", tmp_path / "t")
    path = tmp_path / "t" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][VOCABULARY] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ctp.InputError, match="were changed"):
        ctp.import_prompt(tmp_path / "t", tmp_path / "p")
    path.write_bytes(b"x")
    with pytest.raises(ctp.InputError, match="damaged"):
        ctp.import_prompt(tmp_path / "t", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_what_attaching_warns_of_stands_in_the_readme(llama, tokenizer, tmp_path):
    stored(llama, tokenizer, tmp_path / "m")
    found = ctp.export_tokens(prompt_of(llama, tokenizer, tag="w3"), tmp_path / "m", tmp_path / "t")
    [warning] = found["warnings"]
    assert warning.startswith("the prompt was learned on w3 and is used on full, the same base model")
    page = (tmp_path / "t" / "README.md").read_text()
    assert warning in page and "`<|soft_0|>` to `<|soft_6|>`" in page
    manifest = json.loads((tmp_path / "t" / tokens.MANIFEST).read_text())
    assert (manifest["prompt_tag"], manifest["tag"], manifest["prompt_base"]) == ("w3", "full", "tiny")


def test_refusals_are_one_line_and_leave_nothing(llama, tokenizer, tmp_path, monkeypatch):
    saved = prompt_of(llama, tokenizer)
    home = stored(llama, tokenizer, tmp_path / "m")
    wide = prompt_file.SavedPrompt(prefix.Prefix("soft", torch.zeros(K, 31)), None, saved.info)
    kv = prompt_file.SavedPrompt(prefix.KVPrefix("soft", tuple(compile_prefix(llama, saved.prefix))), None, saved.info)
    huge = prompt_file.SavedPrompt(prefix.Prefix("soft", saved.prefix.rows * 1e6), None, saved.info)
    long = prompt_of(llama, tokenizer, k=256)
    other = prompt_of(llama, tokenizer, tokenizer_fingerprint="0123456789abcdef")
    nobody = prompt_of(llama, tokenizer, base_fingerprint=None)
    cases = (
        (wide, {}, "has width 31"),
        (kv, {}, "keys and values"),
        (huge, {}, r"does not fit into float16; use dtype='bfloat16'"),
        (long, {}, "a prompt of 256 rows leaves no room"),
        (other, {}, "another tokenizer"),
        (nobody, {}, "does not say which model"),
        (saved, {"weights": "gptq"}, "is not quantised"),
        (saved, {"weights": "awq"}, "known are gptq"),
        (saved, {"prepend": "sometimes"}, "known are always, never"),
        (saved, {"pad_to": 0}, "at least 1"),
        (saved, {"dtype": "int8"}, "is not known"),
    )
    for prompt, options, reason in cases:
        with pytest.raises(ctp.InputError, match=reason) as caught:
            ctp.export_tokens(prompt, home, tmp_path / "t", **options)
        assert "\n" not in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["m"], reason
    ctp.export_tokens(nobody, home, tmp_path / "forced", force=True)
    (tmp_path / "here").mkdir()
    with pytest.raises(ctp.InputError, match="exists already"):
        ctp.export_tokens(saved, home, tmp_path / "here")
    monkeypatch.setattr(token_front, "_PROBES", ("", *token_front._PROBES))
    monkeypatch.setattr(token_front, "in_front", lambda backend, soft: backend)  # a tokenizer that ignores us
    with pytest.raises(ctp.InputError, match="cannot take special tokens"):
        ctp.export_tokens(saved, home, tmp_path / "t")
    assert not list(tmp_path.glob("t*"))


class Slow:
    """A tokenizer without a tokenizer.json, as some models bring in Python."""

    backend_tokenizer = None


def test_tokenizers_and_models_that_cannot_take_more_tokens(llama, tokenizer):
    with pytest.raises(ctp.InputError, match=r"Slow has no tokenizer\.json"):
        token_front.added(Slow(), K, reserved=False, taken=())
    llama.set_input_embeddings(Curved(VOCABULARY, 32))
    with pytest.raises(ctp.InputError, match="does more to an embedding than scale it"):
        token_rows.scale(llama)
    llama.lm_head = None
    with pytest.raises(ctp.InputError, match="has no plain output head"):
        token_rows.tables(llama)
    model = tiny("gpt2")
    model.transformer.wpe = torch.nn.Embedding(VOCABULARY, 32)
    with pytest.raises(ctp.InputError, match="in more than one table"):
        token_rows.tables(model)


class Curved(torch.nn.Embedding):
    def forward(self, input):
        return super().forward(input).pow(3)


@pytest.mark.parametrize("family", ["llama", "GemmaConfig", "Gemma3TextConfig"])
def test_the_scale_is_the_models_own(family):
    model = any_tiny(family)
    factor = token_rows.scale(model)
    assert factor == pytest.approx(1 if family == "llama" else 32**0.5, rel=1e-6)
    ids = torch.arange(9)
    torch.testing.assert_close(embed(model, ids), embeddings(model)[ids] * factor)


def test_a_full_disk_leaves_nothing(llama, tokenizer, tmp_path, monkeypatch):
    """A real limit on the size of any file stops the weights; the tokenizer's files are stopped as tokenizers does."""
    saved, home = prompt_of(llama, tokenizer), stored(llama, tokenizer, tmp_path / "m")

    def refused() -> None:
        with pytest.raises(ctp.InputError, match="cannot write") as caught:
            ctp.export_tokens(saved, home, tmp_path / "t")
        assert "\n" not in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["m"]

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def full(*arguments, **more):
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    refused()
