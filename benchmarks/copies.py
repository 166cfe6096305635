"""Prompts learned through one copy, several, noisy ones and copies drawn anew, on copies that none of them saw.

    python benchmarks/copies.py --out runs/copies                                    # the embedded model, 2 bits
    python benchmarks/copies.py --model smollm2 --bits 3 --group-size 0 --corpus c4 --texts c4,docs \\
      --held-text wikitext2 --tokens 100 --batch 4 --seq-len 256 --lr 0.03 --steps 300 --out runs/copies-smollm2

A recipe is a number of copies, and what changes in their weights as learning goes: ``1``, ``4``, ``1+noise=0.5``,
``4+redraw=5``. All take the same number of steps, by KL to the full model, from the same rows. Copies to learn on are
calibrated on ``--texts`` in turn. The four held-out ones share no setting with them: another text, other seeds, number
and length of windows, and three of them another option of the solver. Each prompt is kept, and a killed run goes on.

``own`` is the share of the gap on the first copy, ``held out`` that on the held-out ones together, on the test split of
``--corpus``, with paired bootstrap intervals over windows.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import ctplab as ctp
from ctplab.progress import bar
from ctplab.prompts.prefix import none
from ctplab.show.axes import save
from ctplab.show.healing import draw_sources
from ctplab.show.tables import table

RECIPES = ("1", "2", "3", "4", "6", "8", "1+noise=0.5", "1+noise=1", "4+noise=0.5", "1+redraw=5", "4+redraw=5")
CHANGES = ("act_order", "damp=0.05", "true_sequential")


def together(scores: list[ctp.WindowScores]) -> ctp.WindowScores:
    """The same windows through several models as one score: sums, window by window."""
    return ctp.WindowScores(sum(each.nll for each in scores), sum(each.n_tokens for each in scores))


class Bench:
    """The copies, the text, and what is kept of them in ``--out``."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, Path(options.out)
        self.full, self.tokenizer = ctp.load(options.model, device=options.device)
        self.spec = ctp.CompressionSpec(bits=options.bits, group_size=options.group_size or None)
        self.text = ctp.corpus(options.corpus, self.tokenizer, options.seq_len)
        self.texts = [ctp.corpus(t, self.tokenizer, options.seq_len).train for t in options.texts.split(",")]
        most = max(int(recipe.partition("+")[0]) for recipe in options.recipes)
        how: dict[str, Any] = {"device": options.device, "progress": bar}
        made = ctp.recompress(
            options.model, self.out / "sources", self.tokenizer, self.texts, self.spec, most, seed=1, **how
        )
        self.sources = [ctp.load(folder, device=options.device)[0] for folder in made]
        making = ctp.Making(self.spec, options.held_text, 40, 3 * options.seq_len // 2, seed=900)
        held = ctp.vary(options.model, self.out / "held", self.tokenizer, making, CHANGES, **how)
        self.held = [ctp.load(folder, device=options.device)[0] for folder in held.values()]

    def prompt(self, recipe: str) -> ctp.SavedPrompt:
        """The prompt of a recipe, learned unless it lies there."""
        folder, o = self.out / "prompts" / recipe, self.options
        if not (folder / "prompt.json").exists():
            first, _, rest = recipe.partition("+")
            more = dict(part.split("=") for part in rest.split("+") if part)
            start = self.tokenizer.decode(self.text.train.stream[: 2 * o.tokens])
            spec = ctp.PromptSpec(
                tokens=o.tokens, steps=o.steps, batch=o.batch, lr=o.lr, kl=1.0, init="text", init_text=start,
                noise=float(more.get("noise", 0)), evaluate_every=25, validation_windows=16,
            )  # fmt: skip
            redraw = None
            if "redraw" in more:
                redraw = ctp.Redraw(self.full, self.texts, self.spec, every=int(more["redraw"]), seed=100)
            learned = ctp.learn(
                self.sources[: int(first)], self.text.train, self.text.validation, spec, tokenizer=self.tokenizer,
                teacher=self.full, redraw=redraw, state=folder / "state.safetensors",
            )  # fmt: skip
            if learned.stopped:
                raise KeyboardInterrupt
            ctp.save_prompt(learned, folder, spec, self.sources[: int(first)], self.tokenizer)
            (folder / "state.safetensors").unlink()
        return ctp.load_prompt(folder)

    def scores(self, name: str, models: list[Any], prefix: Any) -> ctp.WindowScores:
        """The test windows through ``models`` behind ``prefix`` (None: nothing)."""
        keep, found = ctp.kept_in(self.out / "scores"), []
        for i, model in enumerate(models):
            arm = ctp.Arm(name, model, prefix or none(model))
            how: dict[str, Any] = {"limit": self.options.windows, "keep": keep, "progress": bar}
            found.append(ctp.window_scores(arm, self.text.test, name=f"{name}-{i}", **how))
        return together(found)

    def closed(self, recipe: str, which: str, models: list[Any]) -> ctp.Interval:
        """The share of these models' gap that the prompt of ``recipe`` closes."""
        full = together([self.scores("full", [self.full], None)] * len(models))
        small = self.scores(f"{which}-compressed", models, None)
        return ctp.recovery(full, small, self.scores(f"{which}-{recipe}", models, self.prompt(recipe).prefix))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="atlas")
    options.add_argument("--bits", type=int, default=2)
    options.add_argument("--group-size", type=int, default=32)
    options.add_argument("--corpus", default="atlas-web")
    options.add_argument("--texts", default="docs,atlas-news")
    options.add_argument("--held-text", default="atlas-wiki")
    for name, number in (("tokens", 64), ("steps", 100), ("batch", 8), ("seq-len", 128), ("windows", 48)):
        options.add_argument(f"--{name}", type=int, default=number)
    options.add_argument("--lr", type=float, default=0.1)
    options.add_argument("--recipes", nargs="+", default=RECIPES)
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", required=True)
    bench = Bench(options.parse_args())
    found = {}
    for recipe in bench.options.recipes:
        own, held = bench.closed(recipe, "own", bench.sources[:1]), bench.closed(recipe, "held", bench.held)
        found[recipe] = {"own": own, "held out": held}
        print(f"{recipe}: own {own.percent}, held out {held.percent}", flush=True)
    rows = [[recipe, *(share.percent for share in shares.values())] for recipe, shares in found.items()]
    print(table(["learned through", "own", "held out"], rows))
    (bench.out / "copies.json").write_text(json.dumps(found, default=vars, indent=1) + "\n")
    plain = {int(recipe): row for recipe, row in found.items() if recipe.isdigit()}
    if plain:
        curves = {name: {n: row[name] for n, row in plain.items()} for name in ("own", "held out")}
        save(draw_sources(curves, f"{bench.options.steps} steps, {bench.options.corpus}"), bench.out / "copies.png")


if __name__ == "__main__":
    main()
