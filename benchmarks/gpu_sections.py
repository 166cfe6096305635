"""The sections of ``gpu.py``: what each runs, and its table."""

import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

import ctplab as ctp
from ctplab.compression import columns, obs
from ctplab.compression.linear import PackedLinear
from ctplab.compression.packing import pack_bits
from ctplab.decoding import kept, onward
from ctplab.disk import data_dir
from ctplab.learning import memory
from ctplab.learning.graph import Steps
from ctplab.learning.rows import Rows
from ctplab.learning.step import Gradient
from ctplab.learning.windows import Windows
from ctplab.models.anatomy import blocks as blocks_of
from ctplab.models.anatomy import linears
from ctplab.progress import silent
from ctplab.prompts import prefix
from ctplab.prompts.head import halves
from ctplab.text.corpora import Split

SHAPES = {
    "smol": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 2048}
W4 = {"bits": 4, "group_size": 128}
K = 100


def versions() -> str:
    """The versions that matter, of what is installed."""
    found = []
    for name in ("torch", "transformers", "triton", "peft", "llmcompressor"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


@dataclass
class Setup:
    """The device, the sizes, and what was printed."""

    device: torch.device
    tiny: bool
    lines: list[str] = field(default_factory=list)

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    @property
    def k(self) -> int:
        return 5 if self.tiny else K

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def peak(self, reset: bool = False) -> int:
        """The most bytes allocated since the last reset; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0
        if reset:
            torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def timed(self, run: Callable[[], object], repeats: int = 8, warm: int = 3) -> float:
        """Median milliseconds of one call."""
        repeats, warm = (1, 1) if self.tiny else (repeats, warm)
        found = []
        for i in range(warm + repeats):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            found += [time.perf_counter() - began] if i >= warm else []
        return 1000 * statistics.median(found)

    def once(self, run: Callable[[], object]) -> tuple[float, float]:
        """Seconds of one call, and its peak in GiB."""
        self.clean()
        self.peak(reset=True)
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began, self.peak() / 2**30

    @cached_property
    def rate(self) -> float:
        """FLOP/s of a large product of bfloat16 matrices."""
        n = 256 if self.tiny else 8192
        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in range(2))
        return 2 * n**3 / (self.timed(lambda: a @ b) / 1000)

    def model(self, name: str, layers: int | None = None):
        """A LLaMA of one of SHAPES with random weights in bfloat16 (tiny: fp32)."""
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = {**SHAPES[name], **(TINY | {"num_hidden_layers": 2, "num_key_value_heads": 2} if self.tiny else {})}
        shape["num_hidden_layers"] = min(layers or 99, shape["num_hidden_layers"])
        config = LlamaConfig(**shape, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32 if self.tiny else torch.bfloat16)
        try:
            with self.device:
                return LlamaForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)

    def windows(self, model, batch: int, length: int) -> Tensor:
        if self.tiny:
            batch, length = min(batch, 4), 24
        generator = torch.Generator().manual_seed(0)
        return torch.randint(3, model.config.vocab_size, (batch, length), generator=generator).to(self.device)

    def step(self, model, ids: Tensor) -> tuple[Callable[[], Tensor], Steps]:
        """Our gradient of a prompt on these windows, recorded if the device is a card."""
        learnable = Rows(prefix.random_rows(model, self.k), model)
        learnable.parameters["E"].grad = torch.zeros_like(learnable.parameters["E"])
        spec = ctp.PromptSpec(tokens=self.k, batch=len(ids))
        steps = Steps([Gradient.of(learnable, halves(model), Windows(ids, None), spec, None)])
        numbers = torch.arange(len(ids))
        return lambda: steps(0, numbers, ids[:, 1:].numel()), steps


def learn(setup: Setup) -> None:
    """Milliseconds and memory of a step at six shapes, ours and PEFT's."""
    setup.say(f"\nlearning step, k {setup.k}, random weights; memory beside the model")
    setup.say("shape windows | ours ms MB | PEFT ms MB | PEFT/ours time memory | share of the matrix rate")
    for name in ("smol", "1.1b"):
        model = setup.model(name)
        inside = sum(p.numel() for key, p in model.named_parameters() if ".layers." in key and p.ndim == 2)
        for batch, length in ((16, 128), (4, 1024), (16, 512)):
            ids = setup.windows(model, batch, length)
            head = model.config.vocab_size * model.config.hidden_size
            flops = 4 * (inside * (ids.numel() + setup.k) + head * ids.numel())
            found, notes = {}, []
            for label, make in (("ours", _our_step), ("PEFT", _peft_step)):
                setup.clean()
                base = setup.allocated()
                setup.peak(reset=True)
                try:
                    run, note = make(setup, model, ids)
                    run()
                    setup.wait()
                    found[label] = (setup.peak() - base) / 2**20, setup.timed(run)
                    notes += [note] if note else []
                    del run
                except Exception as error:  # the other shapes, and the other library, are still measured
                    notes.append(f"{label}: {type(error).__name__} {str(error).partition(chr(10))[0][:100]}")
            nan = float("nan"), float("nan")
            (our_mb, ours), (their_mb, theirs) = found.get("ours", nan), found.get("PEFT", nan)
            share = flops / (ours / 1000) / setup.rate
            setup.say(
                f"{name} {ids.shape[0]} x {ids.shape[1]} | {ours:.1f} {our_mb:.0f} | {theirs:.1f} {their_mb:.0f} | "
                f"{theirs / ours:.2f} {their_mb / max(our_mb, 1e-9):.2f} | {share:.0%} {'; '.join(notes)}"
            )
        del model
        setup.clean()


def _our_step(setup: Setup, model, ids: Tensor) -> tuple[Callable[[], object], str]:
    run, steps = setup.step(model, ids)
    run()
    gradient = steps.gradients[0]
    ways = [f"not recorded: {steps.obstacle}"] * bool(steps.obstacle) + ["two passes"] * (not gradient.one_row)
    return run, ", ".join(ways + ["not fused"] * (gradient.fused is None))


def _peft_step(setup: Setup, model, ids: Tensor) -> tuple[Callable[[], object], str]:
    from peft import PromptTuningConfig, get_peft_model

    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=setup.k))
    tuned = tuned.to(setup.device)

    def run() -> None:
        tuned.zero_grad()
        tuned(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss.backward()

    return run, ""


SOLVED = [
    (4096, 4096, W4),
    (12288, 4096, W4),
    (4096, 11008, W4),
    (4096, 4096, {"bits": 3}),
    (4096, 4096, {"bits": 4, "group_size": 32}),
    (4096, 4096, W4 | {"act_order": True}),
    (4096, 4096, W4 | {"act_order": True, "static_groups": True}),
    (4096, 4096, W4 | {"mse": True}),
    (4096, 4096, {"bits": 2, "group_size": 32, "mse": True}),
    (4096, 4096, {"sparsity": 0.5}),
    (4096, 4096, {"pattern": "2:4"}),
    (4096, 4096, {"bits": 4, "sparsity": 0.5}),
]


def solver(setup: Setup) -> None:
    """Milliseconds of one solve, and against the loop in torch: time, equal codes, loss."""
    setup.say("\nsolver, one matrix (the first: also the loop without Triton)")
    for number, (rows, cols, settings) in enumerate(SOLVED):
        rows, cols = (48, 128) if setup.tiny else (rows, cols)
        generator = torch.Generator(setup.device).manual_seed(0)
        X = torch.randn(2 * cols, cols, device=setup.device, generator=generator)
        H = 2 * X.T @ X / len(X)
        W = torch.randn(rows, cols, device=setup.device, generator=generator)
        spec = ctp.CompressionSpec(**settings)
        solve = lambda W=W, H=H, spec=spec: obs.solve(W, H, spec)  # noqa: E731
        line = f"{rows} x {cols} {spec.tag}: {setup.timed(solve, 3, 1):.1f} ms"
        if number == 0:
            fast, kernel = solve(), columns.usable
            columns.usable = lambda device: False
            try:
                slow = solve()
                line += f"; loop {setup.timed(solve, 1, 0):.0f} ms"
            finally:
                columns.usable = kernel
            losses = [obs.output_loss(W, each.W_hat, H) for each in (fast, slow)]
            equal = float((fast.codes == slow.codes).float().mean())
            line += f", equal codes {equal:.5f}, loss {losses[0] / losses[1]:.5f}"
        setup.say(line)


def blocks(setup: Setup) -> None:
    """Eight blocks of 7B's shape from loading to saving, ours and llm-compressor's."""
    setup.say("\n8 blocks of 7B's shape, 128 x 1024 tokens, from loading to saving")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        model = setup.model("7b", 8)
        model.save_pretrained(folder)
        ids = setup.windows(model, 128, 1024).cpu()
        ids = ids % 2048 if not setup.tiny else ids
        del model
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(data_dir() / "model" / name, folder)
        tokenizer = ctp.load_tokenizer(folder)
        own = {"bits": 4, "group_size": 32 if setup.tiny else 128, "symmetric": True, "static_groups": True}
        ways = {"w4-g128, two passes": own, "w4-g128, one pass": own | {"true_sequential": True}}
        ways |= {"w4-s50, two passes": {"bits": 4, "sparsity": 0.5}}
        for label, settings in ways.items():
            try:
                run = lambda settings=settings, label=label: ctp.compress_to(  # noqa: E731
                    folder,
                    Path(scratch) / label.replace(" ", "-"),
                    tokenizer,
                    ids,
                    ctp.CompressionSpec(**settings),
                    dtype="float32" if setup.tiny else "bfloat16",
                    device=str(setup.device),
                    progress=silent,
                )
                seconds, peak = setup.once(run)
                setup.say(f"ours {label}: {seconds:.1f} s, peak {peak:.1f} GiB")
            except ImportError as error:
                setup.say(f"ours {label}: not measured, {error}")
        try:
            seconds, peak = setup.once(lambda: _llm_compressor(folder, ids, setup.device))
            setup.say(f"llm-compressor w4-g128, without saving: {seconds:.1f} s, peak {peak:.1f} GiB")
        except Exception as error:  # it is missing, or its interface has changed
            setup.say(f"llm-compressor: not measured, {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}")


def _llm_compressor(folder: Path, ids: Tensor, device: torch.device) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    rows = ids.tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map=str(device))
    recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"], actorder=None)
    more = {"max_seq_length": ids.shape[1], "num_calibration_samples": len(ids), "batch_size": 16}
    oneshot(model=model, dataset=data, recipe=recipe, shuffle_calibration_samples=False, **more)


def random_parts(rows: int, cols: int, bits: int, sparsity: float, group: int) -> dict[str, Tensor]:
    """Packed weights like those of ``packing.pack``, at random."""
    parts = {"shape": torch.tensor([rows, cols])}
    kept = rows * cols
    if sparsity:
        mask = torch.rand(rows * cols) >= sparsity
        parts["mask"], kept = pack_bits(mask, 1), int(mask.sum())
    parts["codes"] = torch.randint(256, (-(-kept * bits // 8),), dtype=torch.uint8)
    groups = 1 if sparsity else cols // group
    parts["scale"] = (torch.rand(rows, groups) * 2e-3 + 2e-3).half()
    parts["zero"] = torch.full((rows, groups), 2 ** (bits - 1), dtype=torch.uint8)
    return parts


def put_packed(setup: Setup, model: nn.Module, bits: int, sparsity: float = 0.0) -> None:
    """Replace the linear layers of the blocks by packed ones; those of one shape share their random codes."""
    made: dict[tuple, dict[str, Tensor]] = {}
    for _, block in blocks_of(model):
        for name, layer in linears(block).items():
            shape = tuple(layer.weight.shape)
            if shape not in made:
                parts = random_parts(*shape, bits, sparsity, 32 if setup.tiny else 128)
                made[shape] = {key: part.to(setup.device) for key, part in parts.items()}
            parent, _, child = name.rpartition(".")
            own = {key: part.clone() for key, part in made[shape].items()}
            setattr(block.get_submodule(parent), child, PackedLinear(own, bits, None))
    setup.clean()


def decoding(setup: Setup, arm: ctp.Arm, batch: int) -> str:
    """Milliseconds to the first token, then tokens a second: kernel by kernel, and over a recorded step."""
    sizes = {"length": 16, "new_tokens": 20} if setup.tiny else {"length": 128, "new_tokens": 64}
    asked, found = onward.obstacle, []
    why: list[str | None] = [None]

    def obstacle(*about) -> str | None:
        why.append(asked(*about))
        return why[-1]

    for recorded in (False, True):
        onward.obstacle = obstacle if recorded else lambda *about: "not asked for"
        try:
            found += ctp.latency(arm, tokens=(0,), batch=batch, repeats=1 if setup.tiny else 5, **sizes)
        finally:
            onward.obstacle = asked
    by_kernel, replayed = (point.tokens_per_second.median for point in found)
    shown = f"{found[0].first_token_ms.median:.1f} {by_kernel:.0f} {replayed:.0f}"
    if any(one.step.batch == batch for one in kept.recordings(arm.model)):
        return shown
    return f"{shown} (not recorded: {why[-1] or kept.refused(arm.model) or 'no room'})"


def packed(setup: Setup) -> None:
    """Learning, the first token and decoding through packed weights, beside dense ones."""
    setup.say("\n8 blocks of 7B's shape: dense, and packed in several ways")
    setup.say(
        "weights | GiB | learning step 4 x 1024 ms | "
        "first token of 128 ms, then tokens/s kernel by kernel, tokens/s recorded: batch 1; batch 8"
    )
    for label, bits, sparsity in (
        ("dense", None, 0.0),
        ("w4", 4, 0.0),
        ("w3", 3, 0.0),
        ("w2", 2, 0.0),
        ("w4-s50", 4, 0.5),
    ):
        before = setup.allocated()
        model = setup.model("7b", 8)
        if bits:
            put_packed(setup, model, bits, sparsity)
        size = (setup.allocated() - before) / 2**30
        run, steps = setup.step(model, setup.windows(model, 4, 1024))
        ms = setup.timed(run, 5, 2)
        note = f" (not recorded: {steps.obstacle})" if steps.obstacle else ""
        del run, steps
        setup.clean()
        arm = ctp.Arm(label, model, prefix.none(model))
        shown = "; ".join(decoding(setup, arm, batch) for batch in (1, 8))
        setup.say(f"{label} | {size:.2f} | {ms:.1f}{note} | {shown}")
        del model, arm
        setup.clean()


def whole(setup: Setup) -> None:
    """A model of 7B's shape with 32 blocks: compressed, a prompt learned through packed weights, scored."""
    setup.say("\na whole model of 7B's shape, 32 blocks, random weights; memory beside what the sections before left")
    before = setup.allocated() / 2**30
    model = setup.model("7b")
    ids = setup.windows(model, 64, 1024).cpu()
    spec = ctp.CompressionSpec(bits=4, group_size=32 if setup.tiny else 128)
    found: list = []
    seconds, peak = setup.once(lambda: found.append(ctp.compress(model, ids, spec, progress=silent, inplace=True)[1]))
    setup.say(
        f"compressed, {ids.shape[0]} x {ids.shape[1]} tokens: {seconds / 60:.2f} min, peak {peak - before:.1f} GiB"
    )
    for name, parts in found.pop().parts.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(parts, spec.bits, None))
    setup.clean()
    settings = memory.Settings(
        tokens=setup.k,
        seq_len=ids.shape[1],
        batch=4,
        dtype="float32" if setup.tiny else "bfloat16",
        bits=4,
        group_size=spec.group_size,
        card=setup.device.type == "cuda",
    )
    told = memory.learning(memory.shape_of(model.config), settings)
    setup.say(f"packed: {setup.allocated() / 2**30 - before:.2f} GiB (ctplab memory: {told.weights / 2**30:.2f})")
    ctp.recompute(model)
    text = Split("random", "train", ids.flatten(), ids.shape[1])
    recipe = ctp.PromptSpec(tokens=setup.k, steps=3 if setup.tiny else 20, batch=4, validation_windows=4)
    learned: list = []
    run = lambda: learned.append(ctp.learn(model, text, text, recipe, progress=silent))  # noqa: E731
    seconds, peak = setup.once(run)
    steps = learned[0].steps
    middle = 1000 * statistics.median(step.seconds for step in steps)
    note = f" (not recorded: {learned[0].not_recorded})" if learned[0].not_recorded else ""
    setup.say(
        f"learned, {len(steps)} steps of 4 x {ids.shape[1]}, recomputed: {seconds / 60:.2f} min, {middle:.0f} ms each, "
        f"peak {peak - before:.1f} GiB (ctplab memory: {told.total / 2**30:.1f}){note}"
    )
    arm = ctp.Arm("soft", model, learned[0].prefix)
    seconds, peak = setup.once(lambda: ctp.perplexity(arm, ids[:16]))
    setup.say(f"scored, {min(16, len(ids))} x {ids.shape[1]}: {seconds / 60:.2f} min, peak {peak - before:.1f} GiB")
