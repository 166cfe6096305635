"""``compress``, ``info`` and ``export model``: models and what is on disk."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from ctplab.cli import tokens
from ctplab.cli.shared import add_command, finish, note, say, seq_len


def compress(options: argparse.Namespace) -> None:
    from ctplab.formats.streaming import compress_to
    from ctplab.models.loading import load_tokenizer, local_folder, skeleton
    from ctplab.specs import CompressionSpec
    from ctplab.text.corpora import corpus

    chosen = {field.name: getattr(options, field.name) for field in fields(CompressionSpec)}
    spec = CompressionSpec(**chosen)
    out = Path(options.out)
    folder = local_folder(options.model)
    tokenizer = load_tokenizer(folder)
    length = seq_len(skeleton(folder), options.seq_len)
    windows = corpus(options.calibration, tokenizer, length).train.sample(options.samples, options.seed)
    manifest = compress_to(
        options.model, out, tokenizer, windows, spec, device=options.device, dtype=options.dtype, batch=options.batch
    )
    keys = ("tag", "seconds", "bytes", "bits_per_weight", "nominal_bits_per_weight", "warnings", "untouched", "layers")
    tell = say(options)
    tell(
        f"{spec.tag}: {len(manifest['layers'])} matrices, {manifest['bytes'] / 1e6:.2f} MB, "
        f"{manifest['bits_per_weight']:.2f} bits a weight (nominal {spec.nominal_bits:g}), "
        f"{manifest['seconds']:.1f} s -> {out}"
    )
    tell(f"left as they are: {', '.join(manifest['untouched'])}")
    for warning in manifest["warnings"]:
        note(warning)
    finish(options, {"out": str(out), **{key: manifest[key] for key in keys}})


def model(options: argparse.Namespace) -> None:
    if options.to == "gguf":
        return tokens.export_gguf(options)
    from ctplab.formats.gptq import export

    result = export(Path(options.model), Path(options.out), options.to)
    say(options)(f"{result['tag']} as {result['format']}, {result['bytes'] / 1e6:.2f} MB -> {result['out']}")
    finish(options, result)


def info(options: argparse.Namespace) -> None:
    from ctplab.formats import prompt_file
    from ctplab.formats.checkpoint import describe

    folder = Path(options.path)
    if (folder / prompt_file.MANIFEST).exists():
        result = {key: value for key, value in prompt_file.load(folder).info.items() if key != "curve"}
    else:
        result = describe(options.path)
    for key, value in result.items():
        say(options)(f"{key}: {value}")
    finish(options, result)


def register_export(exports: Any) -> None:
    """Add ``export model``."""
    sub = add_command(exports, model, "write a compressed model for other programs")
    sub.add_argument("model")
    sub.add_argument("--to", required=True, help="gptq, gptq_v2, dense (a plain half-precision folder) or gguf")
    sub.add_argument("--out", required=True, metavar="DIR")


def register(commands: Any) -> None:
    """Add the subcommands of this file."""
    sub = add_command(
        commands, compress, "GPTQ (--bits), SparseGPT (--sparsity, --pattern) or both jointly", shared=True
    )
    sub.add_argument("model")
    sub.add_argument("--bits", type=int)
    sub.add_argument("--sparsity", type=float, default=0.0)
    sub.add_argument("--pattern", metavar="N:M")
    sub.add_argument("--group-size", type=int)
    sub.add_argument("--act-order", action="store_true")
    sub.add_argument("--symmetric", action="store_true")
    sub.add_argument("--true-sequential", action="store_true")
    sub.add_argument("--static-groups", action="store_true", help="fit group grids on the original weights")
    sub.add_argument("--mse", action="store_true", help="search each grid's range for the least error (for 2 bits)")
    sub.add_argument("--reference", action="store_true", help="as the published code, also where it slips")
    sub.add_argument("--damp", type=float, default=0.01)
    sub.add_argument("--block", type=int, default=128, help="columns between lazy updates")
    sub.add_argument("--batch", type=int, default=16, help="calibration windows at a time")
    sub.add_argument("--calibration", default="atlas-web", metavar="CORPUS")
    sub.add_argument("--samples", type=int, default=128)
    sub.add_argument("--seq-len", type=int, default=0, help="tokens a window (default: 1024, or what the model takes)")
    sub.add_argument("--out", required=True, metavar="DIR")

    sub = add_command(commands, info, "what a model or prompt folder holds")
    sub.add_argument("path")
