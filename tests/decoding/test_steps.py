"""The pieces of a stream join to the output of ``generate``. A piece costs one forward pass; a pause costs none."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import pytest
import torch
from conftest import scripted

import ctplab as ctp
from ctplab.decoding.sampler import GREEDY
from ctplab.decoding.steps import until
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm

K = 7
TEXT = "Q: Where is Tulsa?\nA:"
HOT = ctp.Sampler(temperature=1.5, top_p=0.95, repetition_penalty=1.2, seed=3)
SAMPLERS = pytest.mark.parametrize("sampler", [GREEDY, HOT], ids=["greedy", "sampled"])


@pytest.fixture
def arm(llama):
    return Arm("soft", llama, prefix.random_rows(llama, K))


@pytest.fixture(scope="module")
def atlas():
    return ctp.load("atlas", device="cpu")


def answered(arm, tokenizer, text, **settings) -> str:
    return ctp.generate(arm, tokenizer, [text], **settings)[0].text


@SAMPLERS
@pytest.mark.parametrize("kind", ["none", "hard", "soft"])
def test_pieces_join_to_the_answer_of_generate(any_model, tokenizer, kind, sampler, front):
    settings = {"max_new_tokens": 12, "sampler": sampler}
    arm = front(any_model, kind)
    pieces = list(ctp.stream(arm, tokenizer, TEXT, **settings))
    assert "".join(pieces) == answered(arm, tokenizer, TEXT, **settings) != ""


@SAMPLERS
@pytest.mark.parametrize("stop", [None, "\n", " the", "e", "no such end"])
def test_a_stream_gives_what_generate_gives(atlas, sampler, stop):
    """On the embedded model, whose answers are words: with stop texts that span pieces, or never come."""
    model, tok = atlas
    arm = Arm("soft", model, prefix.random_rows(model, K))
    counted = []
    settings = {"max_new_tokens": 24, "sampler": sampler, "stop": stop}
    whole = ctp.generate(arm, tok, ["Next we went to"], **settings)[0]
    pieces = ctp.stream(arm, tok, "Next we went to", on_token=lambda: counted.append(1), **settings)
    assert "".join(pieces) == whole.text
    assert len(counted) in (whole.n_tokens, whole.n_tokens + 1), "an end token is generated, but is no text"


@pytest.mark.parametrize("stop", ["a", "ab", "aab", "bab", "c"])
def test_a_stop_is_found_however_the_text_is_cut(stop):
    text = "xaabaabab"
    for size in range(1, 10):
        pieces = (text[i : i + size] for i in range(0, len(text), size))
        assert "".join(until(pieces, stop)) == text.split(stop)[0]


def test_a_stop_text_leaves_one_piece_a_token(arm, tokenizer):
    """What may become the stop text is held back, and shown if it does not."""
    whole = "".join(ctp.stream(arm, tokenizer, TEXT, max_new_tokens=20))
    stop = whole[len(whole) // 2 :][:3]
    passes = []
    arm.model.register_forward_hook(lambda *_: passes.append(1))
    pieces = ctp.stream(arm, tokenizer, TEXT, max_new_tokens=20, stop=stop)
    found = []
    for n, piece in enumerate(pieces, 1):
        found.append(piece)
        assert len(passes) == n
    assert "".join(found) == whole.partition(stop)[0]
    assert "".join(ctp.stream(arm, tokenizer, TEXT, max_new_tokens=20, stop=whole[-1] + "never")) == whole


@pytest.mark.parametrize("ends", [5, [5], [9, 5], None])
def test_an_answer_ends_at_any_end_token(arm, tokenizer, ends):
    arm.model.generation_config.eos_token_id = ends
    counted = []
    said = [500, 600, 5, 700, 9, 800]
    with scripted(arm.model, said):
        pieces = list(ctp.stream(arm, tokenizer, TEXT, max_new_tokens=6, on_token=lambda: counted.append(1)))
    kept = said if ends is None else said[:2]
    assert pieces == [tokenizer.decode([token], skip_special_tokens=True) for token in kept]
    assert len(counted) == (6 if ends is None else 3), "an end token is generated, but is no text"
    with scripted(arm.model, said):
        assert answered(arm, tokenizer, TEXT, max_new_tokens=6) == "".join(pieces)


CHARACTERS = "aé😀b日本"


def by_bytes(tokenizer):
    """The embedded tokenizer: its tokens are pieces of UTF-8."""
    return tokenizer, tokenizer(CHARACTERS, add_special_tokens=False)["input_ids"]


def by_fallback(tokenizer):
    """A tokenizer that spells unknown characters in byte tokens, as LLaMA's does."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "</s>", *"ab", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(bpe)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    found = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    return found, found(CHARACTERS, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("stop", [None, "never"])
@pytest.mark.parametrize("kind", [by_bytes, by_fallback])
def test_a_character_of_several_tokens_is_shown_whole(llama, tokenizer, kind, stop):
    arm = Arm("none", llama, prefix.none(llama))
    tok, said = kind(tokenizer)
    assert len(said) > len(CHARACTERS) and tok.decode(said) == CHARACTERS
    with scripted(llama, said):
        pieces = list(ctp.stream(arm, tok, "a", max_new_tokens=len(said), stop=stop))
    assert len(pieces) == len(said) and "".join(pieces) == CHARACTERS
    assert all(piece in ("", *CHARACTERS) for piece in pieces)


@pytest.mark.parametrize("ended", [False, True], ids=["cut", "ended"])
def test_a_character_that_stays_incomplete_is_part_of_the_answer(llama, tokenizer, ended):
    """Cut at any token: by the limit, or by an end token in the middle of a character."""
    arm = Arm("none", llama, prefix.none(llama))
    llama.generation_config.eos_token_id = 2
    tok, said = by_bytes(tokenizer)
    for n in range(1, len(said) + 1):
        script, settings = [*said[:n], 2], {"max_new_tokens": n + ended}
        with scripted(llama, script):
            joined = "".join(ctp.stream(arm, tok, "a", **settings))
        with scripted(llama, script):
            assert joined == answered(arm, tok, "a", **settings) == tok.decode(said[:n])


@pytest.mark.parametrize("stop", [None, "no such end"])
def test_one_forward_a_piece_and_none_after_closing(llama, tokenizer, stop):
    calls, counted, threads = [], [], threading.enumerate()
    llama.register_forward_hook(lambda *_: calls.append(1))
    arm = Arm("a", llama, prefix.none(llama))
    pieces = ctp.stream(arm, tokenizer, TEXT, max_new_tokens=200, stop=stop, on_token=lambda: counted.append(1))
    assert not calls
    for n in range(1, 5):
        next(pieces)
        assert len(calls) == len(counted) == n
        assert torch.is_grad_enabled(), "between two pieces the caller's own settings hold"
    assert threading.enumerate() == threads
    pieces.close()
    assert len(calls) == 4 and next(pieces, None) is None


def test_closing_before_the_first_piece_does_nothing(llama, tokenizer):
    calls = []
    llama.register_forward_hook(lambda *_: calls.append(1))
    pieces = ctp.stream(Arm("a", llama, prefix.none(llama)), tokenizer, TEXT)
    pieces.close()
    assert not calls


def test_an_error_while_streaming_reaches_the_reader(llama, tokenizer):
    def broken(*_):
        raise RuntimeError("out of memory")

    llama.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(ctp.stream(Arm("x", llama, prefix.none(llama)), tokenizer, TEXT))
    assert torch.is_grad_enabled()


def test_streams_in_four_threads_give_what_each_gives_alone(llama, tokenizer):
    """Four arms of one model at once, as the dashboard runs them, each with its own seed."""
    arms = [Arm(str(i), llama, prefix.random_rows(llama, K, i)) for i in range(4)]
    samplers = [ctp.Sampler(1.5, seed=i) for i in range(4)]

    def text(i: int) -> str:
        return "".join(ctp.stream(arms[i], tokenizer, TEXT, max_new_tokens=24, sampler=samplers[i]))

    alone = [text(i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(text, range(4))) == alone
    streams = [ctp.stream(arms[i], tokenizer, TEXT, max_new_tokens=24, sampler=samplers[i]) for i in range(4)]
    lockstep = zip(*zip_longest(*streams, fillvalue=""), strict=True)
    assert ["".join(pieces) for pieces in lockstep] == alone


def test_bad_input_is_refused_before_the_first_piece(arm, tokenizer):
    for arguments, reason in (
        ({"text": " "}, "empty"),
        ({"text": "a", "max_new_tokens": 250}, "the model takes 256"),
        ({"text": "a", "max_new_tokens": 0}, "at least 1"),
    ):
        with pytest.raises(ctp.InputError, match=reason):
            ctp.stream(arm, tokenizer, **arguments)
    wide = Arm("wide", arm.model, prefix.Prefix("wide", torch.zeros(3, 48)))
    with pytest.raises(ctp.InputError, match="made for another model"):
        ctp.stream(wide, tokenizer, TEXT)
    assert torch.is_grad_enabled()
