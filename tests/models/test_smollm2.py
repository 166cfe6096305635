"""SmolLM2-135M-Instruct as ``ctplab get smollm2`` makes it. ``make test-slow`` fetches it; else it is used if here."""

import os
from pathlib import Path

import pytest
import torch

import ctplab as ctp
from ctplab.models.known import MODELS
from ctplab.models.origin import origin

NOT_HERE = "SmolLM2 is not here: 'ctplab get smollm2' fetches it (93 MB)"
#: Perplexity over the first 64 windows of 1,024 (C4's validation has 40), as measured on a GPU.
MEASURED = {"wikitext2": 25.05, "c4": 33.81, "ptb": 51.03}
#: Given with two decimals, in float32 on another machine.
SAME_PERPLEXITY = 2e-3
#: Sums of some ten thousand targets in another order.
SAME_NLL = 1e-5


@pytest.fixture(scope="module")
def smollm2():
    if not MODELS["smollm2"].folder.is_dir():
        pytest.skip(NOT_HERE)
    return ctp.load("smollm2", device="cpu")


def test_it_answers(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model.generate(ids, max_new_tokens=2, do_sample=False)[0]).endswith(" is Paris.")


def test_its_words_are_the_publishers(smollm2):
    """Digits stand alone, and so a space before one does too: the rule that the file names and transformers skips."""
    model, tokenizer = smollm2
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  5 in 2025").input_ids) == [
        "a", "ĠĠ", "5", "Ġin", "Ġ", "2", "0", "2", "5",
    ]  # fmt: skip
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(model.generation_config.eos_token_id) == "<|im_end|>"
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 49152


def test_it_remembers_its_file(smollm2):
    found = origin(MODELS["smollm2"].folder)
    assert found["source"]["tensor_types"] == {"Q8_0": 1, "F32": 61, "Q4_1": 210}
    assert found["source"]["sha256"] == MODELS["smollm2"].sha256


@pytest.mark.slow
@pytest.mark.parametrize("corpus", MEASURED)
def test_perplexity_of_the_full_model(corpus):
    folder = ctp.get_model("smollm2")
    if not Path(os.environ.get("CTPLAB_DATA") or "nowhere").is_dir():
        pytest.skip("CTPLAB_DATA names no folder of corpora")
    model, tokenizer = ctp.load(folder, device="cpu")
    text = ctp.corpus(corpus, tokenizer, 1024).test
    losses = []
    for window in text.windows[:64]:
        with torch.no_grad():
            logits = model(window[None]).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item())
    assert len(losses) >= 40
    by_hand = sum(losses) / (len(losses) * 1023)
    score = ctp.perplexity(ctp.arms(full=model)[0], text, limit=64, batch=2)
    assert score.nll / score.n_tokens == pytest.approx(by_hand, rel=SAME_NLL)
    assert score.ppl == pytest.approx(MEASURED[corpus], rel=SAME_PERPLEXITY)
