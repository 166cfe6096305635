"""Every causal language model class of transformers that a tiny configuration can build: right, refused, or wrong?

``python tests/architectures.py [--json FILE] [KIND ...]`` prints a line a kind. The references are plain loops over the
model's own ``forward``, which share no code with the lab. *Right*: every number agrees. *Refused*: an InputError, in
one line, before any number. *Wrong*: anything else, a traceback included.
"""

import contextlib
import io
import json
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KINDS

import ctplab as ctp
from ctplab.compression import walk
from ctplab.decoding.batched import greedy
from ctplab.decoding.inputs import left_padded
from ctplab.progress import silent
from ctplab.prompts import prefix
from ctplab.prompts.compiled import compile_prefix
from ctplab.prompts.head import halves, logits_after

VOCABULARY, K, T = 256, 6, 24
MOST, BUILDING, JUDGING = (
    6_000_000,
    6.0,
    30.0,
)  # parameters, seconds of processor time: what a default left large would make slow
#: Two orders of fp32 sums through a few layers, relative to the largest logit.
SUMMATION = 3e-4
#: The Hessian of a block's input from the walk and from the compressed model itself, relative to its largest entry.
SAME_INPUTS = 1e-3
#: Whatever a configuration calls them: its own names are taken.
SHAPE: dict[str, Any] = {
    **dict.fromkeys(("vocab_size",), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 32),
    **dict.fromkeys(("dim_model", "embedding_size", "word_embed_proj_dim",), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "dim_ff", "ffn_hidden_size"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    "head_dim": 8, "dim_head": 8, "global_head_dim": 8, "rotary_dim": 4, "sliding_window": 16, "attention_window": 16,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 12, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_n_groups": 1, "state_size": 8,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "n_mamba_heads": 4, "mamba_ngroups": 1,
    "use_mamba_kernels": False, "mamba_dt_rank": 4, "time_step_rank": 4, "ssm_state_size": 8,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "lru_width": 32,
    "index_head_dim": 8, "index_n_heads": 2, "index_topk": 8, "dff": 64, "emb_dim": 32, "chunk_size": 8,
}  # fmt: skip
LAYERS = {"num_hidden_layers": 4}
MORE: dict[str, dict[str, Any]] = {
    "bamba": LAYERS | {"attn_layer_indices": [1, 3]},
    "doge": {"sliding_window": None},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gemma3n_text": LAYERS | {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
                              "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": LAYERS | {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "jamba": LAYERS | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2": LAYERS | {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": LAYERS | {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "hidden_size": 32},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "opt": {"word_embed_proj_dim": 32},
    "qwen3_next": LAYERS, "qwen3_5_text": LAYERS, "qwen3_5_moe_text": LAYERS,
    "roberta": {"max_position_embeddings": 130}, "xlm-roberta": {"max_position_embeddings": 130},
    "zamba2": LAYERS | {"hybrid_layer_ids": [1, 3], "layers_block_type": ["mamba", "hybrid"] * 2},
}  # fmt: skip


def tiny_config(kind: str) -> Any:
    """A small configuration of this kind. Raises whatever transformers raises if these settings do not go together."""
    known = CONFIG_MAPPING[kind]
    if getattr(known, "sub_configs", None):
        raise ValueError("made of several models")
    names = known().to_dict()
    settings = {name: value for name, value in SHAPE.items() if name in names} | MORE.get(kind, {})
    if "qk_rope_head_dim" in settings and "num_key_value_heads" in settings:  # latent attention shares no heads
        settings |= {"num_key_value_heads": 4, "head_dim": settings["qk_rope_head_dim"]}
    return known(**settings)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once it has taken this much processor time: some default stayed large."""

    def over(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s of processor time")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def tiny_model(kind: str) -> Any:
    """A random model of this kind whose weights are large enough to show errors."""
    with within(BUILDING):
        return _built(kind)


def _built(kind: str) -> Any:
    config = tiny_config(kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST:
        raise ValueError(f"{size:,} parameters: some default stayed large")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            p.mul_(3)
        elif name.endswith("bias") or not p.any():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    with torch.no_grad():
        out = model(input_ids=torch.arange(3, 3 + T)[None], use_cache=False).logits
    if not torch.isfinite(out).all() or out.std() < 1e-3:
        raise ValueError("its random weights give no usable logits")
    return model


class Wrong(Exception):
    """A number differs from its reference."""


def _same(what: str, found: torch.Tensor, wanted: torch.Tensor, most: float = SUMMATION) -> None:
    if found.shape != wanted.shape:
        raise Wrong(f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    off = float((found - wanted).abs().max() / wanted.abs().max())
    if not off <= most:
        raise Wrong(f"{what}: off by {off:.1e} of the largest")


def _plain(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def _ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1]))


@torch.no_grad()
def scores(model: Any) -> None:
    """Summed NLL without a prefix; a model whose earlier logits move with a later token must have been refused."""
    ids = _ids(3, T)
    found = ctp.perplexity(ctp.Arm("full", model, prefix.none(model)), ids, batch=2).nll
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 17) % VOCABULARY
    logits = _plain(model, ids)
    _same("a later token moved an earlier logit", _plain(model, changed)[:, :-1], logits[:, :-1])
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    cut = halves(model)
    _same("logits from the model cut before its head", cut.head(cut.states([], ids)), logits)
    _same("NLL", torch.tensor(found), wanted.double(), 1e-4)


@torch.no_grad()
def prompted(model: Any) -> None:
    """Logits and greedy tokens behind a prefix of tokens, against the same tokens in front; a padded batch."""
    ids, front = _ids(2, T), _ids(K)
    rows = prefix.from_ids(model, front, "tokens")
    wanted = _plain(model, torch.cat([front.expand(2, -1), ids], 1))[:, K:]
    _same("logits behind a prefix", logits_after(model, compile_prefix(model, rows), ids), wanted)
    texts = [ids[0].tolist(), ids[1, 5:].tolist()]
    for arm, before in ((ctp.Arm("p", model, rows), front), (ctp.Arm("n", model, prefix.none(model)), front[:0])):
        try:
            both = greedy(arm, left_padded(texts, model, 0), 3).tolist()
        except ctp.InputError as error:
            if "batches of one" not in str(error):
                raise
            both = [greedy(arm, left_padded([text], model, 0), 3)[0].tolist() for text in texts]
        for text, new in zip(texts, both, strict=True):
            read = torch.cat([before, torch.tensor(text)])[None]
            for token in new:
                logits = _plain(model, read)[0, -1]
                if float(logits.max() - logits[token]) > SUMMATION * float(logits.abs().max()):
                    raise Wrong(f"greedy tokens {'behind a prefix' if len(before) else 'of the model alone'}")
                read = torch.cat([read, torch.tensor([[token]])], 1)


@torch.no_grad()
def compressed(model: Any, folder: Path, tokenizer: Any) -> None:
    """The inputs that calibration saw, against the compressed model's own; streaming against memory, and loading."""
    windows, spec = _ids(4, T), ctp.CompressionSpec(bits=8)
    seen: dict[str, torch.Tensor] = {}
    solve = walk._solve

    def watched(matrices: Any, hessian: Any, *rest: Any) -> Any:
        seen[next(iter(matrices))] = hessian.matrix.clone()
        return solve(matrices, hessian, *rest)

    walk._solve = watched
    try:
        small, report = ctp.compress(model, windows, spec, progress=silent)
    finally:
        walk._solve = solve
    _same_inputs(small, seen, windows)
    inside = sum(p.numel() for _, block in walk.blocks(model) for p in block.parameters() if p.ndim > 1)
    share = 1 - sum(layer.weights for layer in report.layers) / inside
    if share > 0.2 and not any("of the blocks' weights" in line for line in report.warnings):
        raise Wrong(f"{share:.0%} of the blocks' weights were not compressed, and nobody says so")
    model.save_pretrained(folder / "full")
    tokenizer.save_pretrained(folder / "full")
    ctp.compress_to(folder / "full", folder / "small", tokenizer, windows, spec, device="cpu", progress=silent)
    again = ctp.load(folder / "small", device="cpu")[0]
    _same("what streaming wrote, loaded again", _plain(again, windows), _plain(small, windows), 1e-4)


def _same_inputs(small: Any, seen: dict[str, torch.Tensor], windows: torch.Tensor) -> None:
    """The Hessian of every block's first linear is that of its inputs in the compressed model itself."""
    for name, block in walk.blocks(small):
        first = next((unit for unit in seen if unit.startswith(f"{name}.")), None)
        module = None if first is None else walk.linears(block).get(first.removeprefix(f"{name}."))
        if first is None or module is None:
            continue
        inputs: list[torch.Tensor] = []
        hook = module.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0].flatten(0, -2)))
        _plain(small, windows)
        hook.remove()
        x = torch.cat(inputs).double()
        _same(f"the inputs of {first}", seen[first].double(), 2 * x.T @ x / len(x), SAME_INPUTS)


def judge(kind: str, tokenizer: Any) -> dict[str, str]:
    """What each task comes to: ``right``, or ``refused: ...`` or ``wrong: ...`` with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(kind)
        tasks: dict[str, Callable[[], None]] = {
            "score": lambda: scores(model),
            "prompt": lambda: prompted(model),
            "compress": lambda: compressed(model, Path(folder), tokenizer),
        }
        with within(JUDGING):
            return {name: _outcome(task) for name, task in tasks.items()}


def _outcome(task: Callable[[], None]) -> str:
    try:
        task()
    except ctp.InputError as error:
        return f"refused: {str(error).splitlines()[0]}"
    except TimeoutError:
        raise
    except Wrong as error:
        return f"wrong: {error}"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}"
    return "right"


def main(kinds: list[str], out: Path | None) -> int:
    """Judge every kind, print a line each and the counts. Returns the number of wrong ones."""
    from ctplab.disk import data_dir
    from ctplab.models.loading import load_tokenizer

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    tokenizer, found, left = load_tokenizer(data_dir() / "model"), {}, {}
    for kind in kinds:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                found[kind] = judge(kind, tokenizer)
            print(kind, found[kind], flush=True)
        except Exception as error:
            left[kind] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
            print(kind, "NOT BUILT", left[kind], flush=True)
    counts = {
        task: Counter(row[task].split(":")[0] for row in found.values()) for task in ("score", "prompt", "compress")
    }
    print(f"{len(found)} built, {len(left)} not; " + "; ".join(f"{task}: {dict(n)}" for task, n in counts.items()))
    if out:
        out.write_text(json.dumps({"found": found, "not_built": left}, indent=1))
    return sum(row[task].startswith("wrong") for row in found.values() for task in row)


if __name__ == "__main__":
    given = sys.argv[1:]
    target = Path(given.pop(given.index("--json") + 1)) if "--json" in given else None
    sys.exit(main([g for g in given if g != "--json"] or list(KINDS), target) > 0)
