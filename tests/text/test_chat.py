"""Conversations: targets written out by hand, sums by an independent loop, and what is refused."""

import json

import pytest
import torch
from commands import refused
from conftest import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import ctplab as ctp
from ctplab.decoding.inputs import answer_ends
from ctplab.learning.objective import mixed_loss
from ctplab.learning.teacher import MemoryTeacher, cached_teacher
from ctplab.prompts import prefix
from ctplab.prompts.arms import Arm
from ctplab.prompts.compiled import compile_rows
from ctplab.prompts.head import halves
from ctplab.scores import count_targets, predicted
from ctplab.text.chat import Conversation, end_of_turn, ids_and_answers
from ctplab.text.reading import encode

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    "<s>{{ m.role }} {{ m.content }}<e> {% endfor %}{% if add_generation_prompt %}<s>assistant {% endif %}"
)
WORDS = ("<unk>", "<s>", "<e>", "user", "assistant", "hi", "you", "there", "bye", "now")
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hi there"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "bye now"},
]
BY_HAND = (
    ("<s>", 0), ("user", 0), ("hi", 0), ("<e>", 0), ("<s>", 0), ("assistant", 0), ("hi", 1), ("there", 1), ("<e>", 1),
    ("<s>", 0), ("user", 0), ("bye", 0), ("<e>", 0), ("<s>", 0), ("assistant", 0), ("bye", 1), ("now", 1), ("<e>", 1),
)  # fmt: skip


@pytest.fixture
def chatty():
    """A tokenizer of ten words with a template like ChatML."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", additional_special_tokens=["<s>", "<e>"])
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text((json.dumps({"messages": TALK}) + "\n") * 40)
    return path


@pytest.fixture
def llama64():
    return tiny("llama").double()


def test_targets_are_those_written_by_hand(chatty):
    ids, marks = ids_and_answers(chatty, Conversation(tuple(TALK)))
    assert chatty.convert_ids_to_tokens(ids) == [word for word, _ in BY_HAND]
    assert [int(mark) for mark in marks] == [mark for _, mark in BY_HAND]
    marked = TEMPLATE.replace(
        "<s>{{ m.role }} {{ m.content }}<e> ",
        "<s>{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }}<e>{% endgeneration %}"
        "{% else %}{{ m.content }}<e>{% endif %} ",
    )
    chatty.chat_template = marked  # transformers' own mask, from the marks of the template
    assert ids_and_answers(chatty, Conversation(tuple(TALK))) == (ids, marks)


def test_the_sum_is_that_of_an_independent_loop_and_the_divisor_the_count(chatty, file, llama64):
    text = ctp.corpus(f"file:{file}", chatty, 13).test
    arm = Arm("soft", llama64, prefix.random_rows(llama64, 3))
    found = ctp.window_scores(arm, text)
    stream, marks = list(BY_HAND) * 2, []
    for window, nll in zip(text.windows.tolist(), found.nll.tolist(), strict=True):
        at = len(marks) * 13
        assert chatty.convert_ids_to_tokens(window) == [word for word, _ in stream[at : at + 13]]
        rows = torch.cat([arm.prefix.rows.double(), llama64.get_input_embeddings()(torch.tensor(window))])
        logp = llama64(inputs_embeds=rows[None]).logits[0, 3:].log_softmax(-1)
        chosen = [t for t in range(1, 13) if stream[at + t][1]]
        marks.append(len(chosen))
        # a float32 cross-entropy of float64 logits: 1e-7 relative, some targets
        assert nll == pytest.approx(-sum(float(logp[t - 1, window[t]]) for t in chosen), rel=1e-5)
    assert found.n_tokens.tolist() == marks and found.score.n_tokens == sum(marks)


def test_all_is_the_same_text_without_a_mask(chatty, file, llama64, tmp_path):
    answers, every = (ctp.corpus(f"file:{file}", chatty, 6, loss=loss).test for loss in ("answers", "all"))
    plain = ctp.Split("x", "test", answers.stream, 6)
    assert every.mask is None and every.fingerprint == plain.fingerprint != answers.fingerprint
    arm = Arm("none", llama64, prefix.none(llama64))
    assert torch.equal(ctp.window_scores(arm, every).nll, ctp.window_scores(arm, plain).nll)
    counts = count_targets(answers.windows, answers.window_masks)
    assert 0 in counts.tolist(), "windows without a target are fine"
    assert torch.equal(ctp.window_scores(arm, answers).n_tokens, counts)


def test_the_gradient_is_that_of_a_masked_cross_entropy(chatty, file):
    opt = tiny("opt").double()  # LLaMA's norms run in fp32 in any model
    text = ctp.corpus(f"file:{file}", chatty, 13).train
    ids, masks = text.windows[:4], text.window_masks[:4]
    rows = prefix.random_rows(opt, 3).rows.double().requires_grad_(True)
    cut = halves(opt)
    loss = mixed_loss(*_order(predicted(cut.states(compile_rows(opt, rows), ids), ids, masks), cut.head))
    (ours,) = torch.autograd.grad(loss / count_targets(ids, masks).sum(), rows)
    embedded = torch.cat([rows.expand(4, -1, -1), opt.get_input_embeddings()(ids)], 1)
    logp = opt(inputs_embeds=embedded).logits[:, 3:-1].log_softmax(-1)
    each = -logp.gather(2, ids[:, 1:, None])[..., 0]
    (plain,) = torch.autograd.grad((each * masks[:, 1:]).sum() / masks[:, 1:].sum(), rows)
    torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-12)  # float64 in another order of sums


def _order(pair, head):
    states, targets = pair
    return states, head, 2048, targets


def test_learning_takes_masks_and_teachers_the_same_rows(chatty, file, llama, quiet, tmp_path):
    text = ctp.corpus(f"file:{file}", chatty, 13)
    spec = ctp.PromptSpec(tokens=3, steps=3, batch=4, evaluate_every=3, validation_windows=2, kl=0.5)
    learned = ctp.learn(llama, text.train, text.validation, spec, teacher=llama, **quiet)
    masks = text.validation.window_masks[:2]
    assert learned.validation_tokens == int(masks[:, 1:].sum())
    arm = Arm("soft", llama, learned.prefix)
    assert ctp.perplexity(arm, text.validation, limit=2).mean == pytest.approx(learned.best_validation, rel=1e-6)
    numbers = torch.arange(4)
    ids, few = text.train.windows[:4], text.train.window_masks[:4]
    n = int(few[:, 1:].sum())
    student = torch.zeros(n, 2048).log_softmax(-1)
    exact = MemoryTeacher(llama).target(numbers, ids, few)(slice(0, n), student)
    kept = cached_teacher(llama, text.train, tmp_path, k=2048).target(numbers, ids, few)(slice(0, n), student)
    torch.testing.assert_close(kept.exp(), exact.exp(), rtol=2e-3, atol=1e-6)  # kept in fp16


def test_a_turn_stands_behind_the_prefix_and_ends_with_its_own_token(chatty, llama):
    assert chatty.convert_ids_to_tokens(encode(chatty, "hi")) == ["<s>", "user", "hi", "<e>", "<s>", "assistant"]
    assert chatty.convert_ids_to_tokens(encode(chatty, "hi", raw=True)) == ["hi"]
    assert chatty.convert_ids_to_tokens([end_of_turn(chatty)]) == ["<e>"]
    llama.generation_config.eos_token_id = 7
    assert answer_ends(llama, chatty) == [7, 2] and answer_ends(llama, chatty, raw=True) == [7]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"content": "hi"}]}, "line 41: every message needs a 'role'"),
        ({"messages": []}, "line 41: 'messages' must be a list of at least one message"),
        ({"messages": ["hi"]}, "line 41: every message must be an object"),
        ({"messages": [{"role": "king", "content": "hi"}]}, r"line 41: .*refuses this conversation \(no such role\)"),
        ({"prompt": "hi"}, "line 41: 'messages' must be a list"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line(chatty, file, row, reason):
    file.write_text(file.read_text() + json.dumps(row) + "\n")
    with pytest.raises(ctp.InputError, match=f"talk.jsonl, {reason}"):
        _ = ctp.corpus(f"file:{file}", chatty, 6).test


def test_fields_are_found_or_chosen(tokenizer, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    row = {"content": "Lima is a city. ", "body": "Tulsa is a city. "}
    path.write_text((json.dumps(row) + "\n") * 40)
    content = ctp.corpus(f"file:{path}", tokenizer, 4).test
    body = ctp.corpus(f"file:{path}#body", tokenizer, 4).test
    assert "Lima" in tokenizer.decode(content.stream) and "Tulsa" in tokenizer.decode(body.stream)
    path.write_text(json.dumps({"text": "a", "content": "b"}))
    with pytest.raises(ctp.InputError, match="line 1: it has text and content; choose one"):
        ctp.corpus(f"file:{path}", tokenizer)
    path.write_text((json.dumps({"prompt": "Where is Lima?", "completion": " In Peru."}) + "\n") * 40)
    pairs = ctp.corpus(f"file:{path}", tokenizer, 4).test
    assert tokenizer.decode(pairs.stream[pairs.mask]) == " In Peru." * 2
    path.write_text((json.dumps({"messages": TALK}) + "\n") * 40)
    assert "no chat template" in refused(capsys, "score", "atlas", "--corpus", f"file:{path}", "--seq-len", "8")
    assert "--loss all" in refused(capsys, "score", "atlas", "--corpus", "docs", "--loss", "answers")
