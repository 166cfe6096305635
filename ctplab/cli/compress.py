"""``compress``: a model with fewer bits, fewer weights, or both."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.cli.numbers import at_least, real
from ctplab.cli.parsing import in_flags
from ctplab.cli.shared import add_command, finish, note, note_replaced, say, seq_len
from ctplab.compression.walk import PRODUCTS
from ctplab.formats.checkpoint import MANIFEST
from ctplab.models import Tokenizer
from ctplab.models.fingerprints import tensor_fingerprint
from ctplab.models.loading import local_folder, skeleton
from ctplab.runs.stale import mark_report
from ctplab.text.corpora import MOST_SAMPLES


def compress(options: argparse.Namespace) -> None:
    """Compress --model into --out, block by block; the same command goes on where it stopped."""
    spec = ctp.CompressionSpec(**{field.name: getattr(options, field.name) for field in fields(ctp.CompressionSpec)})
    out = Path(options.out)
    folder = local_folder(options.model)
    tokenizer = ctp.load_tokenizer(folder)
    length = seq_len(skeleton(folder), options.seq_len)
    if options.vary is not None:
        vary(options, spec, tokenizer, length)
        return
    windows = ctp.corpus(options.calibration, tokenizer, length).train.sample(options.samples, options.seed)
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("device", "dtype", "batch", "products")}
    made_from = {"spec": spec.to_json(), "calibration": tensor_fingerprint(windows), "base": options.model}
    note_replaced(out / MANIFEST, made_from)
    manifest = ctp.compress_to(options.model, out, tokenizer, windows, spec, **settings)
    mark_report(out.resolve().parent.parent, out.resolve().parent.name)  # of a demo whose level this was
    keys = ("tag", "seconds", "bytes", "bits_per_weight", "nominal_bits_per_weight", "warnings", "untouched", "layers")
    tell = say(options)
    tell(
        f"{spec.tag}: {len(manifest['layers'])} matrices, {manifest['bytes'] / 1e6:.2f} MB, "
        f"{manifest['bits_per_weight']:.2f} bits a weight (nominal {spec.nominal_bits:g}), "
        f"{manifest['seconds']:.1f} s -> {out}"
    )
    products = sorted({layer["products"] for layer in manifest["layers"]})
    tell(f"matrix products in {', '.join(products)}")
    tell(f"left as they are: {', '.join(manifest['untouched'])}")
    for warning in manifest["warnings"]:
        note(in_flags(warning, options.parser.flags))
    finish(options, {"out": str(out), **{key: manifest[key] for key in keys}})


def vary(options: argparse.Namespace, spec: ctp.CompressionSpec, tokenizer: Tokenizer, length: int) -> None:
    """Make the copies of --vary: --out holds a folder for each, and ``same`` for the model as the options say."""
    tell, made = say(options), []

    def told(variant: ctp.Variant, manifest: dict[str, Any]) -> None:
        tell(f"{variant.name}: {manifest['tag']}, {manifest['bytes'] / 1e6:.2f} MB, {manifest['seconds']:.1f} s")
        keys = ("tag", "seconds", "bytes", "bits_per_weight", "warnings")
        about = {"name": variant.name, "out": str(Path(options.out) / variant.name), "changed": dict(variant.changed)}
        for warning in manifest["warnings"]:
            note(f"{variant.name}: {in_flags(warning, options.parser.flags)}")
        made.append({**about, **{key: manifest[key] for key in keys}})

    making = ctp.Making(spec, options.calibration, options.samples, length, options.seed, options.dtype)
    how: dict[str, Any] = {name: getattr(options, name) for name in ("device", "batch", "products")}
    ctp.vary(options.model, Path(options.out), tokenizer, making, options.vary, tell=told, **how)
    finish(options, {"out": options.out, "copies": made})


def register(commands: Any) -> None:
    """Add the command."""
    about = "GPTQ (--bits), SparseGPT (--sparsity, --pattern) or both jointly"
    sub = add_command(commands, "compress", compress, about, shared=True)
    sub.add_argument("model")
    sub.add_argument("--bits", type=at_least(1))
    sub.add_argument("--sparsity", type=real, default=0.0)
    sub.add_argument("--pattern", metavar="N:M")
    sub.add_argument("--group-size", type=at_least(1))
    sub.add_argument("--act-order", action="store_true")
    sub.add_argument("--symmetric", action="store_true")
    sub.add_argument("--true-sequential", action="store_true")
    sub.add_argument("--static-groups", action="store_true", help="fit group grids on the original weights")
    sub.add_argument("--mse", action="store_true", help="search each grid's range for the least error (for 2 bits)")
    sub.add_argument("--reference", action="store_true", help="as the published code, also where it slips")
    sub.add_argument("--damp", type=real, default=0.01)
    sub.add_argument("--block", type=at_least(1), default=128, help="columns between lazy updates")
    sub.add_argument("--batch", type=at_least(1), default=16, help="calibration windows at a time")
    sub.add_argument("--products", choices=PRODUCTS, help="what a CPU multiplies in (default: what is faster here)")
    sub.add_argument("--calibration", default="atlas-web", metavar="CORPUS")
    sub.add_argument("--samples", type=at_least(1, MOST_SAMPLES), default=128)
    sub.add_argument(
        "--seq-len", type=at_least(0), default=0, help="tokens a window (default: 1024, or what the model takes)"
    )
    sub.add_argument(
        "--vary", nargs="+", metavar="WHAT",
        help="more copies, each changed in one thing: seed, dtype, text=docs, samples=64, act_order, damp=0.1, bits=4, "
        "bits=none+sparsity=0.5 ...; OUT/same is the model itself, OUT/seed and so on are the others",
    )  # fmt: skip
    sub.add_argument("--out", required=True, metavar="DIR")
