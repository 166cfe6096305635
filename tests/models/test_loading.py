"""One rule says in which dtype models are loaded, and on which devices."""

import pytest
import torch
from conftest import tiny

import ctplab as ctp
from ctplab.formats import streaming
from ctplab.models import loading
from ctplab.models.anatomy import embeddings
from ctplab.progress import silent


def cards(monkeypatch, *capabilities: tuple[int, int]) -> None:
    """A machine with these GPUs, as far as it is asked about them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))

    def capability(card: int | str) -> tuple[int, int]:
        return capabilities[int(str(card).removeprefix("cuda").lstrip(":") or 0)]

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)


AMPERE, VOLTA = (8, 0), (7, 0)
DEFAULT_DEVICE = loading.default_device  # read before conftest.py replaces it


@pytest.mark.parametrize(
    "machine, device, dtype",
    [
        ((), "cpu", "float32"),
        ((AMPERE,), "cpu", "float32"),
        ((AMPERE,), "cuda", "bfloat16"),
        ((AMPERE,), "auto", "bfloat16"),
        ((VOLTA,), "cuda", "float16"),
        ((AMPERE, VOLTA), "cuda:0", "bfloat16"),
        ((AMPERE, VOLTA), "cuda:1", "float16"),
        ((AMPERE, VOLTA), "auto", "float16"),
    ],
)
def test_the_default_dtype_of_a_device(monkeypatch, machine, device, dtype):
    cards(monkeypatch, *machine)
    assert loading.default_dtype(device) == dtype
    assert loading.dtype_on(device, None) == getattr(torch, dtype)
    assert loading.dtype_on(device, "float16") == torch.float16


def test_which_devices_a_machine_has(monkeypatch):
    monkeypatch.setattr(loading, "default_device", DEFAULT_DEVICE)
    cards(monkeypatch)
    assert [loading.usable(device) for device in (None, "auto", "cpu")] == ["cpu"] * 3
    cards(monkeypatch, AMPERE)
    assert [loading.usable(device) for device in (None, "auto", "cpu")] == ["cuda", "auto", "cpu"]
    for device in ("", "nonsense", "cpu:x", "cuda:99"):
        with pytest.raises(ctp.InputError, match=r"cannot use the device .* try device='cpu'"):
            loading.usable(device)


@pytest.fixture
def folders(tokenizer, tmp_path, quiet):
    """A full model whose file is in float16, and two compressed ones."""
    full = tiny("neox")
    full.half().save_pretrained(tmp_path / "full")
    tokenizer.save_pretrained(tmp_path / "full")
    small, report = ctp.compress(tiny("neox"), torch.arange(64).view(4, 16), ctp.CompressionSpec(sparsity=0.5), **quiet)
    ctp.save(small, tmp_path / "small", tokenizer, report, "full")
    bits = ctp.CompressionSpec(bits=4)
    small, report = ctp.compress(tiny("neox"), torch.arange(64).view(4, 16), bits, **quiet)
    ctp.save(small, tmp_path / "bits", tokenizer, report, "full")
    ctp.export(tmp_path / "bits", tmp_path / "gptq", "gptq_v2")
    return tmp_path


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta: no CPU, and every machine has it
def test_full_compressed_and_gptq_models_share_a_dtype(folders, device, dtype):
    loaded = [ctp.load(folders / name, device=device, dtype=dtype)[0] for name in ("full", "small", "bits", "gptq")]
    wanted = dtype or {"cpu": "float32", "meta": "bfloat16"}[device]
    assert {str(embeddings(model).dtype) for model in loaded} == {f"torch.{wanted}"}
    assert [arm.name for arm in ctp.arms(loaded[0], loaded[1])] == ["full", "compressed"]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_compressing_to_disk_computes_in_the_same_dtype(folders, tokenizer, tmp_path, monkeypatch, dtype):
    seen = []
    real = streaming.walk

    def walk(model, *args, **kwargs):
        seen.append(embeddings(model).dtype)
        return real(model, *args, **kwargs)

    monkeypatch.setattr(streaming, "walk", walk)
    spec, windows = ctp.CompressionSpec(sparsity=0.5), torch.arange(64).view(4, 16)
    ctp.compress_to(
        folders / "full", tmp_path / "x", tokenizer, windows, spec, device="cpu", dtype=dtype, progress=silent
    )
    assert seen == [loading.dtype_on("cpu", dtype)]


def test_an_unknown_dtype_is_refused(folders):
    with pytest.raises(ctp.InputError, match="dtype must be one of float32, bfloat16, float16, not 'int8'"):
        ctp.load(folders / "full", device="cpu", dtype="int8")
