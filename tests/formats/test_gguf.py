"""GGUF files become the models that wrote them, or are refused in one line."""

import json
import random

import gguf
import numpy as np
import pytest
import torch
import transformers
from commands import refused, run, run_json
from conftest import NEWER, VOCABULARY
from gguf_files import FAMILIES, MIXED, pieces, sentencepiece, with_turns, write
from transformers import AutoModelForCausalLM, AutoTokenizer

import ctplab as ctp
from ctplab.disk import data_dir
from ctplab.formats import checkpoint
from ctplab.formats.checkpoint import describe

CASES = [(family, "Q8_0") for family in FAMILIES] + [("llama", kind) for kind in ("F16", "BF16", "Q4_0", "Q4_1")]
IDS = torch.arange(1, 101)[None] * 7 % VOCABULARY


def imported(tmp_path, family="llama", kind="Q8_0", **how):
    """(the model that the file must give, the folder)."""
    reference = write(tmp_path / f"{family}.gguf", family, kind, **how)
    ctp.import_model(tmp_path / f"{family}.gguf", tmp_path / "out", progress=lambda items, **_: items)
    return reference, tmp_path / "out"


@pytest.mark.parametrize(
    "family, kind", [pytest.param(*case, marks=NEWER) if case[0].startswith("gemma") else case for case in CASES]
)
def test_the_folder_computes_what_the_file_holds(family, kind, tmp_path):
    """The reference has the values that gguf's own library reads out of the file, put in place by the test."""
    reference, folder = imported(tmp_path, family, kind)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in reference.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, reference.get_parameter(name)), name
    assert torch.equal(plain(IDS).logits, reference(IDS).logits)
    assert not hasattr(plain.config, "quantization_config")
    plain.half().save_pretrained(tmp_path / "half")  # what a model that counts as quantised refuses


def halved(tensors):
    """Norms too hold only what half precision holds."""
    for name, (packed, kind) in tensors.items():
        if kind == gguf.GGMLQuantizationType.F32:
            tensors[name] = packed.astype("float16").astype("float32"), kind


@pytest.mark.parametrize("kind, change, dtype", [("F16", halved, "float16"), ("F16", None, "float32")])
def test_nothing_is_rounded(kind, change, dtype, tmp_path):
    _, folder = imported(tmp_path, kind=kind, change=change)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_bytes_are_cut_as_the_embedded_tokenizer_cuts_them(tmp_path):
    _, folder = imported(tmp_path)
    mine, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(data_dir() / "model")
    for text in (MIXED, *MIXED.splitlines(), "<s>a</s> 5", "<|endoftext|>", ""):
        assert mine(text).input_ids == theirs(text).input_ids, text
    assert mine.decode(mine(MIXED).input_ids, skip_special_tokens=True) == MIXED
    assert len(mine) == VOCABULARY and (mine.bos_token, mine.eos_token, mine.pad_token) == ("<s>", "</s>", "<pad>")
    assert mine.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<s>hi</s>"


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3", marks=NEWER)])
def test_pieces_are_those_that_were_learned(family, tmp_path):
    """The reference tokenizer has its own merges; the file holds scores only, from which they are rebuilt."""
    bare = {"tokenizer.ggml.add_space_prefix": False} if family == "gemma3" else {}
    _, folder = imported(tmp_path, family, tokenizer=sentencepiece, **bare)
    mine, theirs = AutoTokenizer.from_pretrained(folder), pieces(prefix=not bare)
    for text in (MIXED, *MIXED.splitlines()):
        assert mine(text).input_ids == [1, *theirs.encode(text).ids], text
    assert mine.decode(mine(MIXED).input_ids, skip_special_tokens=True) == MIXED


def test_generation_ends_at_the_end_of_a_turn(tmp_path):
    """Gemma's files name <eos>, while answers end at <end_of_turn>."""
    _, folder = imported(tmp_path, tokenizer=with_turns, **{"tokenizer.ggml.eot_token_id": 9})
    told = json.loads((folder / "generation_config.json").read_text())
    assert (told["bos_token_id"], told["eos_token_id"], told["pad_token_id"]) == (1, [2, 9, VOCABULARY - 1], 0)


def test_the_folder_remembers_its_file(tmp_path, capsys):
    write(tmp_path / "tiny.gguf", "llama", "Q4_1")
    found = run_json(capsys, "import", "model", tmp_path / "tiny.gguf", "--out", tmp_path / "out")
    assert found["source"]["file"] == "tiny.gguf" and found["source"]["tensor_types"] == {"Q4_1": 16, "F32": 5}
    assert len(found["source"]["sha256"]) == 64
    _, out, _ = run(capsys, "info", tmp_path / "out")
    assert "note: its publisher had quantised it already (Q4_1: 16 of 21 tensors)" in out
    small = run_json(capsys, "compress", tmp_path / "out", "--bits", "4", "--samples", "4", "--seq-len", "32",
                     "--out", tmp_path / "w4")  # fmt: skip
    assert describe(small["out"])["note"] == describe(tmp_path / "out")["note"]


def test_streaming_compression_takes_the_folder(tmp_path, web, quiet):
    reference, folder = imported(tmp_path)
    spec, windows = ctp.CompressionSpec(bits=4), web.train.sample(4, seed=0)
    ctp.compress_to(folder, tmp_path / "small", ctp.load_tokenizer(folder), windows, spec, device="cpu", **quiet)
    wanted, _ = ctp.compress(reference, windows, spec, **quiet)
    small, _ = ctp.load(tmp_path / "small", device="cpu")
    assert torch.equal(small(windows).logits, wanted(windows).logits)
    assert checkpoint.read_manifest(tmp_path / "small")["layers"]


def extra_tensor(name):
    return lambda tensors: tensors.update({name: (np.arange(8, dtype=np.float32), gguf.GGMLQuantizationType.F32)})


def broken(tensors):
    tensors["blk.0.attn_norm.weight"][0][3] = float("nan")


REFUSED = {
    "rope factors of another kind": ({"change": extra_tensor("rope_freqs.weight")}, "rope factors"),
    "a tensor that nothing takes": ({"change": extra_tensor("blk.0.attn_q.bias")}, "would be lost.*attn_q.bias"),
    "a tensor that is missing": ({"change": lambda t: t.pop("blk.1.ffn_up.weight")}, "missing.*ffn_up"),
    "NaN": ({"change": broken}, "NaN"),
    "stretched positions": ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type = yarn"),
    "experts": ({"llama.expert_count": 8}, "expert_count = 8"),
    "a setting unheard of": ({"llama.logit_scale": 2.0}, "logit_scale = 2.0, which would be lost"),
    "wrong heads": ({"llama.attention.head_count_kv": 1}, "do not fit|cannot read"),
    "one part of two": ({"split.count": 2}, "one part of 2"),
    "an adapter": ({"general.type": "adapter"}, "no model but 'adapter'"),
    "a rule of cutting text unheard of": ({"tokenizer.ggml.pre": "default"}, "rule 'default'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused(case, tmp_path, capsys):
    how, line = REFUSED[case]
    write(tmp_path / "tiny.gguf", "llama", **how)
    with pytest.raises(ctp.InputError, match=line) as error:
        ctp.import_model(tmp_path / "tiny.gguf", tmp_path / "out")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("out*"))


def test_other_attention_scales_are_refused(tmp_path):
    """Gemma 2 27B's: its heads are no 256 wide, and transformers would still scale by 256^-0.5."""
    narrow = {"gemma2.attention.key_length": 128, "gemma2.attention.value_length": 128}
    write(tmp_path / "tiny.gguf", "gemma2", **narrow)
    with pytest.raises(ctp.InputError, match="attention scale"):
        ctp.import_model(tmp_path / "tiny.gguf", tmp_path / "out")


def test_an_architecture_that_cannot_be_read(tmp_path, capsys):
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    line = refused(capsys, "import", "model", tmp_path / "tiny.gguf", "--out", tmp_path / "out")
    assert "'mamba' cannot be read; llama," in line


def test_files_that_are_no_gguf(tmp_path, capsys):
    (tmp_path / "text.gguf").write_text("not a model")
    assert "no GGUF file" in refused(capsys, "import", "model", tmp_path / "text.gguf", "--out", tmp_path / "out")
    assert "no file at" in refused(capsys, "import", "model", tmp_path / "none.gguf", "--out", tmp_path / "out")
    assert "no file at" in refused(capsys, "import", "model", tmp_path, "--out", tmp_path / "out")


def test_an_existing_folder_stays_as_it_is(tmp_path, capsys):
    write(tmp_path / "tiny.gguf", "llama")
    (tmp_path / "out").mkdir()
    assert "exists already" in refused(capsys, "import", "model", tmp_path / "tiny.gguf", "--out", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    write(tmp_path / "tiny.gguf", "llama", "Q4_0")
    whole, rng = (tmp_path / "tiny.gguf").read_bytes(), random.Random(0)
    data = len(whole) - 16 * 1024  # the last tensors
    for cut in (0, 3, 4, 24, 100, *(rng.randrange(len(whole)) for _ in range(6)), data, len(whole) - 1):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(ctp.InputError, match=r"no GGUF|damaged or cut off"):
            ctp.import_model(tmp_path / "cut.gguf", tmp_path / "out")
        assert not list(tmp_path.glob("out*"))


def test_a_damaged_header_is_refused_or_harmless(tmp_path):
    """Random bytes over the header: one line, or (in a name or an idle setting) the same model."""
    reference = write(tmp_path / "tiny.gguf", "llama", "Q4_0")
    whole, rng = (tmp_path / "tiny.gguf").read_bytes(), random.Random(1)
    for trial in range(12):
        damaged = bytearray(whole)
        damaged[rng.randrange(4, 700)] = rng.randrange(256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        out = tmp_path / f"out-{trial}"
        try:
            ctp.import_model(tmp_path / "damaged.gguf", out)
        except ctp.InputError as error:
            assert "\n" not in str(error)
            continue
        assert torch.equal(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(IDS).logits,
                           reference(IDS).logits)  # fmt: skip


def test_interrupted_leaves_nothing(tmp_path):
    write(tmp_path / "tiny.gguf", "llama")

    def stopped(items, **_):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ctp.import_model(tmp_path / "tiny.gguf", tmp_path / "out", progress=stopped)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_what_lies_beside_the_file_changes_nothing(tmp_path):
    """transformers reads a folder's tokenizer_config.json and adapter_config.json before the file's own words."""
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "bos_token": "[CLS]"}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    reference, folder = imported(tmp_path)
    model, tokenizer = ctp.load(folder, device="cpu")
    assert isinstance(model, transformers.LlamaForCausalLM) and tokenizer.bos_token == "<s>"
    assert torch.equal(model(IDS).logits, reference(IDS).logits)
