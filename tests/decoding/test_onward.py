"""What follows the first pass over a recorded step: the logits of the growing cache, for every family of models.

There is no card in most tests: a stand-in runs the function again on the tensors that a graph would read.
"""

import architectures
import pytest
import torch
from conftest import FAMILIES, GROUPED, MORE_FAMILIES, SHAPE, any_tiny, from_config, tiny
from pretended import card, works
from replays import NEW, TEXTS, close, first_pass, followed, on_cards, packed_model, soft, stand_in
from transformers import MistralConfig

import ctplab as ctp
from ctplab.decoding import kept, onward
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import left_padded
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.ways import NOISE, ways

ROUNDING = 1e-5
"""Of float64 logits, relative to the largest: some models keep norms, rotations and softmax in fp32."""
CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
FLOAT32 = ("MixtralConfig", "Qwen2MoeConfig", "GPTNeoConfig")  # no float64 products of experts; attention in fp32
NO_PREFIX = ("GPTNeoConfig",)  # their prefix stays rows
NOT_RECORDED = ("bloom",)  # it takes no position_ids
WAITS = ("FalconConfig", "GPTNeoConfig")  # their attention makes a tensor of a number of the host's


@pytest.fixture
def recorded(monkeypatch):
    return stand_in(monkeypatch)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_a_fixed_cache_gives_the_logits_of_the_growing_one(family, monkeypatch, recorded):
    """Padded texts behind a prefix, in float64, token by token; and no pass asks the device."""
    model = any_tiny(family)
    model = model if family in FLOAT32 else model.double()
    arm = Arm("none", model, prefix.none(model)) if family in NO_PREFIX else soft(model)
    batch = left_padded(TEXTS, model, 0)
    found = followed(arm, batch)
    assert recorded.made == (family not in NOT_RECORDED)
    assert (kept.refused(model) is not None) == (family in WAITS)
    monkeypatch.undo()
    wanted = followed(arm, batch)
    most = NOISE[torch.float32] if family in FLOAT32 else ROUNDING
    assert float((found - wanted).abs().max()) <= most * float(wanted.abs().max())
    assert len({tuple(row.argmax(-1).tolist()) for row in wanted}) > 1, "the test is blind"


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES, "packed"])
def test_a_graph_of_a_step_is_the_step(family, monkeypatch):
    """Its operations alone, on the tensors that they were recorded with, for two answers; and the weights change."""
    cards = on_cards(monkeypatch)
    model = packed_model(torch.float32) if family == "packed" else any_tiny(family)
    arm = Arm("none", model, prefix.none(model)) if family in NO_PREFIX else soft(model)
    batch, other = (left_padded(texts, model, 0) for texts in (TEXTS, [text[::-1] for text in TEXTS]))
    found = [followed(arm, batch), followed(arm, other)]
    made = len(kept.recordings(model))
    assert made == (family not in (*NOT_RECORDED, *WAITS)) and (kept.refused(model) is not None) == (family in WAITS)
    assert cards.current_stream() == cards.default_stream()
    monkeypatch.undo()
    wanted = [followed(arm, batch), followed(arm, other)]
    assert all(close(a, b) for a, b in zip(found, wanted, strict=True)) and not torch.equal(*wanted)


@pytest.mark.parametrize("old", [True, False], ids=["torch-2.11", "torch-2.13"])
def test_a_card_that_fails_to_record_answers_as_before(old, llama, monkeypatch):
    """A model that waits as no operation tells: torch's own recording fails. Other models' recordings stay right."""
    other, texts = tiny("opt"), [[5, 6, 7]]
    wanted = [greedy(soft(model), left_padded(texts, model, 0), 20).tolist() for model in (other, llama)]
    cards = on_cards(monkeypatch, old=old)
    layer, answers = llama.model.layers[1].mlp.act_fn, []

    class Waits(torch.nn.Module):
        def forward(self, x):
            if cards.capturing is not None:
                cards.forbidden()
            return layer(x)

    llama.model.layers[1].mlp.act_fn = Waits()
    for model in (other, llama, other, llama):
        answers.append(greedy(soft(model), left_padded(texts, model, 0), 20).tolist())
        cards.empty_cache()
    assert answers == wanted * 2 and len(kept.recordings(other)) == 1
    assert kept.refused(llama).startswith("recording failed: CUDA error: operation") and kept.refused(other) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", architectures.KINDS)
def test_every_architecture_goes_on_over_a_fixed_cache(kind, recorded, monkeypatch):
    """Those that a tiny configuration builds, with windows that are wide enough."""
    wide = dict.fromkeys(("sliding_window", "attention_window"), 512)
    monkeypatch.setattr(architectures, "SHAPE", architectures.SHAPE | wide)
    try:
        model = architectures.tiny_model(kind)
        found = ways(model)
    except Exception as error:  # not built, or not causal
        pytest.skip(str(error))
    if not found.cached:
        pytest.skip("every token reads the whole text again")
    arm = soft(model) if found.compiled else Arm("none", model, prefix.none(model))
    batch = left_padded(TEXTS if found.padded else [text[:3] for text in TEXTS], model, 0)
    over = followed(arm, batch)
    if not recorded.made:
        pytest.skip(str(onward.obstacle(model, first_pass(arm, batch, NEW)[0], 64)))
    why = kept.refused(model)
    assert why is None or "makes the host wait" in why, why
    monkeypatch.setattr(onward, "_no_card", lambda device: "not this time")
    assert close(over, followed(arm, batch))


@pytest.mark.parametrize("kind", ["none", "hard", "soft"])
def test_answers_are_those_without_a_recording(kind, recorded, monkeypatch, tokenizer, front):
    """Both loops, on the embedded model: a padded batch, a stream by sampling, and early ends."""
    model, tok = ctp.load("atlas", device="cpu")
    arm = front(model, kind)
    batch = left_padded([[5, 60, 7, 8], [9, 100], [11, 12, 13]], model, 0)
    hot = ctp.Sampler(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=1)
    free = greedy(arm, batch, NEW).tolist()
    ends = [free[0][6], free[1][9], free[2][4]]

    def answers():
        streamed = "".join(ctp.stream(arm, tok, "The capital of", max_new_tokens=NEW, sampler=hot))
        stopped = "".join(ctp.stream(arm, tok, "The capital of", max_new_tokens=NEW, stop=" the"))
        concatenated = greedy(arm, batch, NEW, concatenate=True).tolist() if arm.prefix.k else []
        return greedy(arm, batch, NEW, ends=ends).tolist(), concatenated, streamed, stopped

    found = answers()
    assert recorded.made == 2 and kept.refused(model) is None  # one for each size of batch
    monkeypatch.undo()
    assert free == greedy(arm, batch, NEW).tolist() and found == answers()


def test_a_recording_that_is_wrong_is_not_used_and_not_made_again(recorded, llama):
    arm, batch = soft(llama), left_padded(TEXTS, llama, 0)
    wanted = greedy(arm, batch, 8).tolist()
    recorded.off = 1.01
    assert [row[:8] for row in greedy(arm, batch, 20).tolist()] == wanted
    assert kept.refused(llama) == "a replay gives other logits than the model"
    greedy(arm, batch, 20)
    assert recorded.made == 1
    llama.double()
    assert kept.refused(llama) is None, "another model now"


@pytest.mark.parametrize("error", [RuntimeError("not permitted\nmore"), TypeError(), torch.OutOfMemoryError()])
def test_an_answer_goes_on_if_recording_fails(error, recorded, llama, monkeypatch):
    arm, batch = soft(llama), left_padded(TEXTS, llama, 0)
    wanted = greedy(arm, batch, 20).tolist()
    kept._kept.pop(llama)

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(kept, "Recording", fails)
    assert greedy(arm, batch, 20).tolist() == wanted
    told = {"RuntimeError": "recording failed: not permitted", "TypeError": "recording failed: TypeError"}
    assert kept.refused(llama) == told.get(type(error).__name__)  # there may be memory next time


def test_nan_is_refused_while_a_recording_runs(recorded, llama):
    arm, batch = soft(llama), left_padded([[5, 6, 7]], llama, 0)
    greedy(arm, batch, 20)
    (used,) = kept._kept[llama]
    run = used.recording.run
    used.recording.run = lambda: run() * torch.nan
    with pytest.raises(ctp.InputError, match="NaN"):
        greedy(arm, batch, 20)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.train(), "training mode"),
        (lambda m: m.model.register_forward_hook(lambda *_: None), "hooks"),
        (lambda m: setattr(m.model.norm, "forward", m.model.norm.forward), "replaced"),
        (lambda m: setattr(m, "peft_config", {}), "adapters"),
        (lambda m: setattr(m.config, "sliding_window", 40), "window"),
        (lambda m: m.lm_head.to("meta"), "several devices"),
    ],
)
def test_what_is_not_recorded(change, why, recorded, llama):
    cache = first_pass(soft(llama), left_padded([[5, 6, 7]], llama, 0), 20)[0]
    assert onward.obstacle(llama, cache, 64) is None
    with torch.inference_mode():
        assert "inference mode" in onward.obstacle(llama, cache, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in onward.obstacle(llama, cache, 64)
    change(llama)
    assert why in onward.obstacle(llama, cache, 64)


def test_which_caches_are_not_recorded(recorded):
    narrow = from_config(MistralConfig(**SHAPE | GROUPED, sliding_window=32))
    lfm2 = architectures.tiny_model("lfm2")
    for model, why in ((narrow, "window"), (lfm2, "keys and values"), (tiny("bloom"), "position_ids")):
        arm = Arm("none", model, prefix.none(model))
        cache = first_pass(arm, left_padded([[5, 6, 7]], model, 0), 20)[0]
        assert why in onward.obstacle(model, cache, 64)
        greedy(arm, left_padded([[5, 6, 7]], model, 0), 20)
    assert recorded.made == 0


def test_hooks_that_transformers_leaves_are_no_obstacle(recorded, llama):
    llama(torch.tensor([[5, 6]]), output_hidden_states=True)
    greedy(soft(llama), left_padded(TEXTS, llama, 0), 20)
    assert recorded.made == 1 and kept.refused(llama) is None


def test_without_a_card_nothing_is_recorded(llama):
    assert onward.obstacle(llama, None, 64) == "there is no card"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_answer_over_a_fixed_cache(dtype, recorded):
    model = packed_model(dtype)
    found = followed(soft(model), left_padded(TEXTS, model, 0))
    assert recorded.made == 1 and kept.refused(model) is None
    kept._refused[model] = kept._state(model), "not this time"
    wanted = followed(soft(model), left_padded(TEXTS, model, 0))
    assert close(found, wanted)


def test_a_fixed_step_mixes_no_devices(recorded, monkeypatch):
    if not works():
        pytest.skip(f"torch {torch.__version__} does not let a card be pretended")
    with card(monkeypatch):
        model = packed_model(torch.float32).to("cuda")
        found = greedy(soft(model), left_padded(TEXTS, model, 0), 20)
        assert found.is_cuda and recorded.made == 1 and kept.refused(model) is None
        monkeypatch.setattr(onward, "_no_card", lambda device: "not this time")
        assert torch.equal(found, greedy(soft(model), left_padded(TEXTS, model, 0), 20))


@CARD
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES, "packed"])
def test_a_card_answers_over_a_recorded_step(family):
    """As the stand-in does; and what a model does that waits for the card is not recorded."""
    model = (packed_model(torch.bfloat16) if family == "packed" else any_tiny(family)).cuda()
    arm = Arm("none", model, prefix.none(model)) if family in NO_PREFIX else soft(model)
    batch = left_padded(TEXTS, model, 0)
    found = followed(arm, batch)
    why = kept.refused(model)
    assert why is None or "the host wait" in why or "captur" in why, why
    assert len(kept._kept.get(model, [])) == (why is None and family not in NOT_RECORDED)
    again = followed(arm, batch)  # from the recording that was kept
    kept._refused[model] = kept._state(model), "not this time"
    wanted = followed(arm, batch)
    assert close(found, wanted) and close(again, wanted)
