"""``ctplab``: subcommands over the public API. Exit codes: 0, 2 (bad input, one line), 130 (interrupted)."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ctplab.errors import InputError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{message} (see '{self.prog} --help')")


def _say(options: argparse.Namespace) -> Callable[[str], None]:
    """Text for people goes to standard output, or nowhere with --json: only JSON may stand there then."""
    return (lambda text: None) if options.json else print


def _finish(options: argparse.Namespace, result: Any) -> None:
    if options.json:
        print(json.dumps(result))


def _load(options: argparse.Namespace, name: str):
    from ctplab.compress.loading import load

    return load(name, device=options.device, dtype=options.dtype)


def _seq_len(model: Any, wanted: int, k: int = 0) -> int:
    from ctplab.models import context_length

    limit = context_length(model)
    return wanted or min(1024, (limit or 1024 + k) - k)


def demo(options: argparse.Namespace) -> None:
    from ctplab import demo

    result = demo.run(Path(options.out), device=options.device, seed=options.seed, say=_say(options))
    _finish(options, result)


def compress(options: argparse.Namespace) -> None:
    from ctplab.compress.stream import compress_to, local_folder
    from ctplab.corpora import corpus
    from ctplab.models import load_tokenizer, skeleton
    from ctplab.specs import CompressionSpec

    chosen = {field.name: getattr(options, field.name) for field in fields(CompressionSpec)}
    spec = CompressionSpec(**chosen)
    out = Path(options.out)
    folder = local_folder(options.model)
    tokenizer = load_tokenizer(folder)
    length = _seq_len(skeleton(folder), options.seq_len)
    windows = corpus(options.calibration, tokenizer, length).train.sample(options.samples, options.seed)
    manifest = compress_to(
        out, options.model, tokenizer, windows, spec, device=options.device, dtype=options.dtype, batch=options.batch
    )
    keys = ("tag", "seconds", "bytes", "bits_per_weight", "nominal_bits_per_weight", "warnings", "untouched", "layers")
    say = _say(options)
    say(
        f"{spec.tag}: {len(manifest['layers'])} matrices, {manifest['bytes'] / 1e6:.2f} MB, "
        f"{manifest['bits_per_weight']:.2f} bits a weight (nominal {spec.nominal_bits:g}), "
        f"{manifest['seconds']:.1f} s -> {out}"
    )
    say(f"left as they are: {', '.join(manifest['untouched'])}")
    for warning in manifest["warnings"]:
        print(f"ctplab: {warning}", file=sys.stderr)
    _finish(options, {"out": str(out), **{key: manifest[key] for key in keys}})


def export(options: argparse.Namespace) -> None:
    from ctplab.compress.gptq_format import export

    result = export(Path(options.model), Path(options.out), options.to)
    _say(options)(f"{result['tag']} as {result['format']}, {result['bytes'] / 1e6:.2f} MB -> {result['out']}")
    _finish(options, result)


def learn(options: argparse.Namespace) -> None:
    from ctplab.corpora import corpus
    from ctplab.prompts import files
    from ctplab.prompts.learn import learn
    from ctplab.specs import PromptSpec

    weights = {"nll": 0.0, "kl": 1.0, "nll,kl": 0.5}
    if options.objective not in weights:
        raise InputError(f"objective must be nll, kl or nll,kl, not {options.objective!r}")
    if options.preset == "paper":
        spec = PromptSpec.paper()
    else:
        spec = PromptSpec(
            tokens=options.tokens,
            steps=options.steps,
            batch=options.batch,
            lr=options.lr,
            init="text" if options.init_text else options.init,
            init_text=options.init_text,
            kl=weights[options.objective],
            seed=options.seed,
        )
    if spec.kl and not options.teacher:
        raise InputError("the KL objective needs --teacher MODEL, the uncompressed model")
    out = Path(options.out)
    model, tokenizer = _load(options, options.model)
    teacher = _load(options, options.teacher)[0] if spec.kl else None
    text = corpus(options.corpus, tokenizer, _seq_len(model, options.seq_len, spec.tokens))
    learned = learn(
        model,
        text.train,
        text.validation,
        spec,
        tokenizer=tokenizer,
        teacher=teacher,
        state=out / "state.safetensors",
    )
    base = _manifest(options.model)
    files.save(
        out,
        learned,
        spec,
        model,
        tokenizer,
        base=base.get("base", options.model),
        tag=base.get("tag", "full"),
        corpus=options.corpus,
        corpus_fingerprint=text.train.fingerprint,
        seq_len=text.seq_len,
    )
    from ctplab.measure.perplexity import Score

    score = Score(learned.best_validation * learned.validation_tokens, learned.validation_tokens)
    result = {
        "out": str(out),
        "steps": len(learned.steps),
        "seconds": round(sum(step.seconds for step in learned.steps), 2),
        "best_step": learned.best_step,
        "validation": {"nll": score.nll, "n_tokens": score.n_tokens, "ppl": score.ppl},
    }
    _say(options)(f"best at step {learned.best_step}: validation ppl {score.ppl:.2f} -> {out}")
    if learned.stopped:
        print(f"ctplab: {learned.stopped}", file=sys.stderr)
    _finish(options, result)
    if learned.stopped and learned.stopped.startswith("interrupted"):
        raise KeyboardInterrupt
    (out / "state.safetensors").unlink(missing_ok=True)


def _manifest(model: str) -> dict[str, Any]:
    from ctplab.compress import checkpoint
    from ctplab.models import resolve

    folder = Path(resolve(model))
    return checkpoint.read_manifest(folder) if (folder / checkpoint.MANIFEST).exists() else {}


def _arm(options: argparse.Namespace, model: Any, tokenizer: Any):
    """The arm that --prompt, --hard-prompt or --control asks for."""
    from ctplab.prompts import files, prefix
    from ctplab.prompts.kv import Arm

    if sum(x is not None for x in (options.prompt, options.hard_prompt, options.control)) > 1:
        raise InputError("give one of --prompt, --hard-prompt and --control")
    if options.hard_prompt is not None:
        return Arm("hard", model, prefix.hard(model, tokenizer, options.hard_prompt))
    if options.control == "bos":
        return Arm("bos", model, prefix.bos(model, tokenizer))
    if options.control == "random":
        return Arm("random", model, prefix.random_rows(model, options.tokens, options.seed))
    if options.prompt is not None:
        saved = files.load(options.prompt)
        for note in files.attach(saved, model, tokenizer, force=options.force):
            print(f"ctplab: {note}", file=sys.stderr)
        return Arm("soft", model, saved.prefix)
    return Arm("full" if not _manifest(options.model) else "compressed", model, prefix.none(model))


def score(options: argparse.Namespace) -> None:
    from ctplab.atlas.questions import questions
    from ctplab.corpora import corpus
    from ctplab.measure.perplexity import perplexity
    from ctplab.measure.questions import answers, marks
    from ctplab.measure.stats import wilson
    from ctplab.progress import bar

    model, tokenizer = _load(options, options.model)
    arm = _arm(options, model, tokenizer)
    length = _seq_len(model, options.seq_len, arm.prefix.k)
    result: dict[str, Any] = {"arm": arm.name, "seq_len": length, "corpora": {}, "tasks": {}}
    say = _say(options)
    for name in options.corpus.split(","):
        found = perplexity(arm, corpus(name, tokenizer, length).test, limit=options.windows or None, progress=bar)
        row = {"nll": found.nll, "n_tokens": found.n_tokens, "ppl": found.ppl}
        if options.as_published:
            row["ppl_as_published"] = found.ppl_as_published(arm.prefix.k, length)
        result["corpora"][name] = row
        say(f"{arm.name} on {name}: {found}")
    for task in filter(None, options.tasks.split(",")):
        if task != "atlas":
            raise InputError(f"unknown task {task!r}; known here is atlas, the embedded questions")
        asked = list(questions())
        interval = wilson(sum(marks(answers(arm, tokenizer, asked, progress=bar), asked)), len(asked))
        stderr = (interval.value * (1 - interval.value) / len(asked)) ** 0.5
        result["tasks"][task] = {"exact_match": {"value": interval.value, "stderr": stderr, "n": len(asked)}}
        say(f"{arm.name} on {task}: exact match {interval}")
    _finish(options, result)


def generate(options: argparse.Namespace) -> None:
    from ctplab.prompts.kv import generate, stream

    model, tokenizer = _load(options, options.model)
    arm = _arm(options, model, tokenizer)
    text = options.text.replace("\\n", "\n")
    if options.json:
        answer = generate(arm, tokenizer, [text], max_new_tokens=options.max_new_tokens, seed=options.seed)[0]
        _finish(options, {"arm": arm.name, **asdict(answer)})
        return
    for piece in stream(arm, tokenizer, text, max_new_tokens=options.max_new_tokens):
        print(piece, end="", flush=True)
    print()


def compare(options: argparse.Namespace) -> None:
    from ctplab.prompts import files, prefix
    from ctplab.prompts.kv import arms, generate

    full, tokenizer = _load(options, options.full)
    small, _ = _load(options, options.compressed)
    soft = None
    if options.prompt is not None:
        saved = files.load(options.prompt)
        for note in files.attach(saved, small, tokenizer, force=options.force):
            print(f"ctplab: {note}", file=sys.stderr)
        soft = saved.prefix
    hard = prefix.hard(small, tokenizer, options.hard_prompt or prefix.PAPER_HARD_PROMPT)
    result = []
    for text in (t.replace("\\n", "\n") for t in options.text):
        row: dict[str, Any] = {"text": text, "answers": {}}
        _say(options)(text)
        for arm in arms(full, small, hard, soft):
            answer = generate(
                arm, tokenizer, [text], max_new_tokens=options.max_new_tokens, seed=options.seed, stop=options.stop
            )[0]
            row["answers"][arm.name] = asdict(answer)
            _say(options)(f"  {arm.name:>10} | {answer.text.strip()}")
        result.append(row)
    _finish(options, result)


def inspect(options: argparse.Namespace) -> None:
    from ctplab import report
    from ctplab.inspect.nearest import cosine_histogram, inspect_prompt
    from ctplab.prompts import files

    saved = files.load(options.prompt)
    model, tokenizer = _load(options, options.model)
    files.attach(saved, model, tokenizer, force=options.force)
    rows = inspect_prompt(model, tokenizer, saved.prefix, saved.initial, top=min(options.top, 10))
    histogram = cosine_histogram(model, saved.prefix, saved.initial, top=options.top)
    _say(options)(report.nearest_table(rows, histogram))
    tokens = [
        {
            "row": r.row,
            "nearest": [{"token": token, "cosine": cosine} for token, cosine in r.nearest],
            "norm": r.norm,
            "init": r.init,
            "init_rank": r.init_rank,
            "drift": r.drift,
        }
        for r in rows
    ]
    _finish(options, {"tokens": tokens, "histogram": histogram})


def info(options: argparse.Namespace) -> None:
    from ctplab.compress.checkpoint import describe
    from ctplab.prompts import files

    folder = Path(options.path)
    if (folder / files.MANIFEST).exists():
        result = {key: value for key, value in files.load(folder).info.items() if key != "curve"}
    else:
        result = describe(options.path)
    for key, value in result.items():
        _say(options)(f"{key}: {value}")
    _finish(options, result)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ctplab", description="Compress a language model, and heal it with a soft prompt.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(run: Callable, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=about, description=about)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
        sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
        return sub

    def arm_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--prompt", metavar="DIR", help="a learned prompt")
        sub.add_argument("--hard-prompt", metavar="TEXT")
        sub.add_argument("--control", choices=("bos", "random"))
        sub.add_argument("--tokens", type=int, default=100, help="rows of the random control")
        sub.add_argument("--force", action="store_true", help="use a prompt of unknown origin")

    sub = command(demo, "the main job on the embedded model, in four minutes")
    sub.add_argument("--out", default="runs", metavar="DIR")

    sub = command(compress, "GPTQ (--bits), SparseGPT (--sparsity, --pattern) or both jointly")
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
    sub.add_argument("--batch", type=int, default=16, help="calibration windows a forward pass")
    sub.add_argument("--calibration", default="atlas-web", metavar="CORPUS")
    sub.add_argument("--samples", type=int, default=128)
    sub.add_argument("--seq-len", type=int, default=0, help="tokens a window (default: 1024, or what the model takes)")
    sub.add_argument("--out", required=True, metavar="DIR")

    sub = command(export, "write a compressed model for other programs")
    sub.add_argument("model")
    sub.add_argument("--to", required=True, help="gptq, gptq_v2 or dense (a plain half-precision folder)")
    sub.add_argument("--out", required=True, metavar="DIR")

    sub = command(learn, "a soft prompt through frozen weights; resumes")
    sub.add_argument("model")
    sub.add_argument("--corpus", default="atlas-web")
    sub.add_argument("--tokens", type=int, default=100)
    sub.add_argument("--steps", type=int, default=1000)
    sub.add_argument("--batch", type=int, default=16)
    sub.add_argument("--lr", type=float, default=0.03)
    sub.add_argument("--seq-len", type=int, default=0)
    sub.add_argument("--objective", default="nll", help="nll, kl or nll,kl")
    sub.add_argument("--teacher", metavar="MODEL", help="the full model, for kl")
    sub.add_argument("--init", default="vocab-random", choices=("vocab-random", "vocab-first"))
    sub.add_argument("--init-text", metavar="TEXT")
    sub.add_argument("--preset", choices=("paper",), help="the paper's recipe (30,000 steps)")
    sub.add_argument("--out", required=True, metavar="DIR")

    sub = command(score, "perplexity (and the embedded questions) of one arm")
    sub.add_argument("model")
    arm_options(sub)
    sub.add_argument("--corpus", default="atlas-web", help="names, separated by commas")
    sub.add_argument("--tasks", default="", help="atlas: the embedded questions")
    sub.add_argument("--seq-len", type=int, default=0)
    sub.add_argument("--windows", type=int, default=0, help="score the first N windows only")
    sub.add_argument("--as-published", action="store_true", help="also the paper's understated perplexity")

    sub = command(generate, "continue a text with one arm, streaming")
    sub.add_argument("model")
    sub.add_argument("text")
    arm_options(sub)
    sub.add_argument("--max-new-tokens", type=int, default=48)

    sub = command(compare, "the four arms' answers side by side")
    sub.add_argument("--full", required=True, metavar="MODEL")
    sub.add_argument("--compressed", required=True, metavar="MODEL")
    sub.add_argument("--prompt", metavar="DIR")
    sub.add_argument("--hard-prompt", metavar="TEXT")
    sub.add_argument("--force", action="store_true")
    sub.add_argument("--max-new-tokens", type=int, default=32)
    sub.add_argument("--stop", default="\n", help="text that ends an answer (default: a line break)")
    sub.add_argument("text", nargs="+")

    sub = command(inspect, "nearest tokens, norms, drift and cosine histogram of a prompt")
    sub.add_argument("prompt")
    sub.add_argument("--model", required=True)
    sub.add_argument("--top", type=int, default=100)
    sub.add_argument("--force", action="store_true")

    sub = command(info, "what a model or prompt folder holds")
    sub.add_argument("path")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
        return 0
    except InputError as error:
        print(f"ctplab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctplab: interrupted; run the same command to go on", file=sys.stderr)
        return 130


def entry() -> None:
    """The ``ctplab`` script."""
    sys.exit(main())
