"""The main path with its models on a card, without one: no command and no function mixes devices."""

import numpy as np
import pytest
import torch
from commands import run_json
from conftest import tiny
from pretended import card, works

import ctplab as ctp
from ctplab.disk import data_dir

WORDS = [f"{a} {b} is a word pair." for a in ("red", "blue", "green") for b in ("river", "plant", "city", "metal")]
SIZE = ("--seq-len", "24")
FEW = (*SIZE, "--windows", "2")
SHORT = (*SIZE, "--tokens", "4", "--steps", "4", "--batch", "2")


@pytest.fixture
def on_a_card(monkeypatch):
    import torch._dynamo  # it looks at torch.cuda when it is imported

    if not works():
        pytest.skip(f"torch {torch.__version__} does not let a card be pretended")
    with card(monkeypatch):
        yield


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("card")
    tiny("llama").save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    for name in ("train", "validation", "test"):
        (root / f"{name}.txt").write_text("\n\n".join(WORDS * 5))
    return root


def test_the_pretended_card_is_as_strict_as_a_card(on_a_card):
    here, there = torch.randn(3, 4), torch.randn(3, 4).to("cuda")
    assert str(there.device) == str((there @ there.T)[0].device) == "cuda:0" and here.device.type == "cpu"
    assert there.is_cuda and there.cpu().numpy().shape == (3, 4) and there[torch.tensor([0, 1])].is_cuda
    assert torch.zeros(2, device=there.device).is_cuda and (there + torch.tensor(1.0)).is_cuda
    for mixed in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: here[torch.tensor([0], device="cuda")],
        lambda: torch.nn.functional.embedding(torch.tensor([0]), there),
        lambda: here.add_(there.sum()),
        lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
        lambda: torch.zeros(2, device="cuda:1"),
    ):
        with pytest.raises(RuntimeError, match=r"same device|generator|ordinal"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(there)
    leaf = here.clone().requires_grad_()
    (leaf.cuda() * there).sum().backward()
    assert leaf.grad is not None and not leaf.grad.is_cuda and torch.equal(leaf.grad, there.cpu())


def test_the_main_path(on_a_card, folder, capsys, tmp_path):
    text = "file:" + ",".join(str(folder / f"{name}.txt") for name in ("train", "validation", "test"))
    model, small, prompt, corpus = folder / "model", tmp_path / "w3", tmp_path / "prompt", ("--corpus", text)
    assert ctp.load(model)[0].get_input_embeddings().weight.device.type == "cuda"
    compress = ("compress", model, "--bits", "3", "--sparsity", "0.5", "--samples", "4", "--calibration", text, *SIZE)
    run_json(capsys, *compress, "--out", small)
    taught = ("--teacher", model, "--objective", "nll,kl", "--teacher-top", "8", "--hidden", "0.1")
    run_json(capsys, "learn", small, *corpus, *SHORT, *taught, "--out", prompt)
    with_prompt = ("--full", model, "--compressed", small, "--prompt", prompt)
    run_json(capsys, "score", small, "--prompt", prompt, "--against", model, *corpus, *FEW)
    run_json(capsys, "recover", *with_prompt, "--fidelity", *corpus, *FEW)
    run_json(capsys, "compare", *with_prompt, "red river", "--max-new-tokens", "3")
    run_json(capsys, "generate", small, "red", "--prompt", prompt, "--max-new-tokens", "3", "--temperature", "1")
    run_json(capsys, "lens", *with_prompt, "red river is a word pair.")
    targets = ("--targets", small, model, "--sources", small, "--full", model, "--corpora", text)
    cells = run_json(capsys, "transfer", "--prompts", prompt, *targets, *FEW)["cells"]
    home = next(cell for cell in cells if cell["source"] == "prompt" and cell["diagonal"])
    assert home["distance"]["apart"] == 0
    run_json(capsys, "worth", prompt, "--model", small, *corpus, *FEW)
    run_json(capsys, "inspect", prompt, "--model", small, "--top", "3")
    run_json(capsys, "tune", small, *corpus, "--what", "scales,norms,soft", *SHORT, "--out", tmp_path / "tuned")
    run_json(capsys, "score", tmp_path / "tuned", *corpus, *FEW, "--packed")
    run_json(capsys, "export", "model", small, "--to", "dense", "--out", tmp_path / "dense")
    for to in ("peft", "kv", "embeds"):
        run_json(capsys, "export", "prompt", prompt, "--model", small, "--to", to, "--out", tmp_path / to)


def test_the_embedded_prompt_is_at_home_in_bfloat16(on_a_card):
    model, tokenizer = ctp.load(data_dir() / "w4-s55")
    assert model.dtype == torch.bfloat16
    prompt = ctp.load_prompt(data_dir() / "prompt")
    assert not any("another base model" in note for note in ctp.attach(prompt, model, tokenizer, tag="w4-s55"))
