"""Tasks: our arms against lm-eval's own HFLM and against an explicit loop; paired tests against textbook values."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from commands import run_json
from conftest import SHARED

import ctplab as ctp
from ctplab.measure.stats import mcnemar
from ctplab.measure.tasks import evaluate, local
from ctplab.measure.tasks.harness import as_lm
from ctplab.models.anatomy import embed
from ctplab.prompts import prefix
from ctplab.text import reading

DATA = SHARED / "data"
pytest.importorskip("lm_eval", reason="needs lm-eval (pip install 'ctplab[tasks]')")
# lm-eval and what it imports warn about themselves
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.skipif(not (DATA / "tasks").exists(), reason=f"needs the tasks under {DATA}"),
]
FEW = 10


@pytest.fixture(autouse=True)
def data(monkeypatch):
    monkeypatch.setenv("CTPLAB_DATA", str(DATA))


@pytest.fixture
def arms(llama):
    return [ctp.Arm("full", llama, prefix.none(llama)), ctp.Arm("soft", llama, prefix.random_rows(llama, 5))]


def test_unprompted_marks_are_those_of_lm_evals_own_model(arms, tokenizer):
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from ctplab.measure.tasks.evaluate import evaluate

    own = evaluate(arms[0], tokenizer, ["openbookqa"], limit=FEW)["openbookqa"]
    theirs = simple_evaluate(
        HFLM(pretrained=arms[0].model, tokenizer=tokenizer, batch_size=8),
        tasks=[ConfigurableTask(config=local.config("openbookqa"))],
        task_manager=TaskManager(include_defaults=False),
        limit=FEW,
    )
    for metric in ("acc", "acc_norm"):
        samples = sorted(theirs["samples"]["openbookqa"], key=lambda s: s["doc_id"])
        assert own.marks[metric] == [s[metric] for s in samples]
        assert own.metrics[metric].value == theirs["results"]["openbookqa"][f"{metric},none"]
        assert own.metrics[metric].stderr == pytest.approx(
            theirs["results"]["openbookqa"][f"{metric}_stderr,none"], abs=1e-12
        )


@torch.no_grad()
def test_prompted_marks_are_those_of_a_plain_loop(arms, tokenizer):
    """Log-likelihood of every choice behind concatenated rows, one sequence at a time."""
    from ctplab.measure.tasks.evaluate import compare, evaluate

    results = [evaluate(arm, tokenizer, ["openbookqa"], limit=FEW)["openbookqa"] for arm in arms]
    rows = local._openbookqa(DATA / "tasks")[:FEW]
    model, soft = arms[1].model, arms[1].prefix
    acc, acc_norm = [], []
    for row in rows:
        scores = []
        for choice in row["choices"]["text"]:
            context = tokenizer.encode(row["question_stem"])
            whole = tokenizer.encode(f"{row['question_stem']} {choice}")
            joined = torch.cat([soft.rows, embed(model, torch.tensor(whole))])[None]
            logp = model(inputs_embeds=joined, use_cache=False).logits[0, soft.k :].log_softmax(-1)
            scores.append(sum(float(logp[t - 1, whole[t]]) for t in range(len(context), len(whole))))
        gold = row["choices"]["label"].index(row["answerKey"])
        lengths = [len(choice) for choice in row["choices"]["text"]]
        acc.append(float(max(range(4), key=lambda i: scores[i]) == gold))
        acc_norm.append(float(max(range(4), key=lambda i: scores[i] / lengths[i]) == gold))
    assert (results[1].marks["acc"], results[1].marks["acc_norm"]) == (acc, acc_norm)
    paired = compare(results[1], results[0], "acc")
    assert paired.difference.value == pytest.approx(sum(acc) / FEW - results[0].metrics["acc"].value)
    assert 0 < paired.p <= 1


def test_generation_runs_behind_the_prefix(arms, tokenizer):
    from ctplab.measure.tasks.harness import as_lm, only_errors

    with only_errors():
        harness = as_lm(arms[1], tokenizer, 2)
    texts = ["Where is Tulsa?", "The capital"]
    context, mask = harness.tok_batch_encode(texts)
    out = harness._model_generate(context, context.shape[1] + 6, ["zzz"], attention_mask=mask)
    new = [tokenizer.decode(row[context.shape[1] :], skip_special_tokens=True) for row in out]
    assert new == [a.text for a in ctp.generate(arms[1], tokenizer, texts, max_new_tokens=6)]
    assert harness.max_length == 256 - 5


def test_every_local_task_reads_and_unknown_ones_are_refused(arms, tokenizer, monkeypatch, tmp_path):
    counts = {"openbookqa": 500, "hellaswag": 10042, "piqa": 1838, "european_history_2023": 165}
    for name, n in (counts | {"mmlu_high_school_european_history": 165}).items():
        assert len(local._READERS[name][0](DATA / "tasks")) == n
    with monkeypatch.context() as patch:  # lm-eval's own list of thousands takes long to read
        empty = SimpleNamespace(TaskManager=lambda **_: SimpleNamespace(all_tasks=[]), ConfigurableTask=None)
        patch.setattr(evaluate, "import_module", lambda _: empty)
        with pytest.raises(ctp.InputError, match="knows no task 'openbokqa'"):
            evaluate.evaluate(arms[0], tokenizer, ["openbokqa"])
    monkeypatch.setenv("CTPLAB_DATA", str(tmp_path))
    with pytest.raises(ctp.InputError, match="cannot read the task piqa"):
        evaluate.evaluate(arms[0], tokenizer, ["piqa"])
    monkeypatch.delenv("CTPLAB_DATA")
    assert local.config("piqa") is None
    assert local.config("european_history_2023")["dataset_path"] == "cais/mmlu"  # lm-eval has no such task


def test_custom_tasks_come_as_yaml(arms, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"q": "{i} + 1 =", "choices": ["{i + 1}", "no"], "gold": 0}}\n' for i in range(4))
    )
    file = tmp_path / "sums.yaml"
    file.write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'rows.jsonl'}\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: choices\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n'
    )
    found = evaluate.evaluate(arms[1], tokenizer, [str(file)])
    before = evaluate.asked_from(str(file))
    file.write_text(file.read_text() + "num_fewshot: 0\n")
    assert evaluate.asked_from(str(file)) != before  # what was kept of the old task is not taken for the new one
    assert list(found) == ["sums"] and found["sums"].main == "acc" and len(found["sums"].marks["acc"]) == 4
    with pytest.raises(ctp.InputError, match="no task file"):
        evaluate.evaluate(arms[1], tokenizer, [str(tmp_path / "none.yaml")])


def test_generated_answers_are_asked_for_in_a_turn(arms, tokenizer, tmp_path, monkeypatch):
    """Behind every arm, unless ``raw``; given answers are compared as they stand."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"q": "{i} + 1 =", "a": "{i + 1}"}}\n' for i in range(2)))
    file = tmp_path / "said.yaml"
    file.write_text(
        "task: said\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'rows.jsonl'}\ntest_split: test\noutput_type: generate_until\n"
        'doc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\ngeneration_kwargs:\n  max_gen_toks: 2\n  until: ["."]\n'
        "metric_list:\n  - metric: exact_match\n"
    )
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    read = []

    def watched(arm, tokenizer, batch, start):
        lm = as_lm(arm, tokenizer, batch, start)
        encode = lm.tok_batch_encode
        monkeypatch.setattr(lm, "tok_batch_encode", lambda texts, **how: read.append(encode(texts, **how)) or read[-1])
        return lm

    monkeypatch.setattr(evaluate, "as_lm", watched)
    for arm in arms[:2]:
        for raw in (False, True):
            read.clear()
            assert evaluate.evaluate(arm, chat, [str(file)], limit=1, batch=1, raw=raw)["said"].main == "exact_match"
            assert read[0][0][0].tolist() == reading.encode(chat, "0 + 1 =", raw=raw)


def test_the_embedded_questions_need_no_harness(arms, tokenizer, monkeypatch):
    monkeypatch.setattr(evaluate, "import_module", lambda name: pytest.fail(f"{name} is not needed"))
    found = evaluate.evaluate(arms[1], tokenizer, ["atlas"], limit=5)["atlas"]
    assert found.main == "exact_match" and found.metrics["exact_match"].n == len(found.marks["exact_match"]) == 5
    assert found.metrics["exact_match"].value == found.share.value == sum(found.marks["exact_match"]) / 5


def test_mcnemar_is_the_binomial_test():
    first = [True] * 8 + [False] * 2 + [True] * 30
    second = [False] * 8 + [True] * 2 + [True] * 30
    # 8 against 2: 2 * P(X <= 2), X ~ Binomial(10, 1/2) = 2 * 56 / 1024
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(112 / 1024)
    assert mcnemar(first, first) == 1.0
    n, k = 4000, 1900  # far beyond what floats of 2 ** n hold
    wide = mcnemar([True] * (n - k) + [False] * k, [False] * (n - k) + [True] * k)
    z = (n - 2 * k - 1) / math.sqrt(n)
    assert wide == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05)  # the normal approximation at that size


def test_score_takes_harness_tasks(capsys):
    found = run_json(capsys, "score", "atlas", "--corpus", "", "--tasks", "openbookqa,piqa", "--limit", "2")
    assert set(found["tasks"]) == {"openbookqa", "piqa"} and found["corpora"] == {}
    assert {"value", "stderr", "n"} == set(found["tasks"]["piqa"]["acc_norm"]) and found["tasks"]["piqa"]["acc"][
        "n"
    ] == 2
    assert len(found["marks"]["openbookqa"]["acc_norm"]) == 2
