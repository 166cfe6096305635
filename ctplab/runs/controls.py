"""One prompt's recovery with every control in one call, including the two controls that are learned:

    full+own    the full model behind a prompt of its own: the same recipe, steps and text
    lora        the compressed model with a LoRA adapter, learned for as many steps on the same text

Both use the recipe and corpus that the prompt's file names, and both are kept in the run folder. If the recipe is all
KL to the full model, the full model's own prompt has nothing to gain, because its target is the model's own output.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctplab.disk import Keep
from ctplab.errors import InputError
from ctplab.formats.prompt_file import SavedPrompt
from ctplab.learning.lora import same_budget
from ctplab.measure.cost import HALF, Cost, costs, with_times
from ctplab.measure.fidelity import Fidelity
from ctplab.measure.fidelity import fidelity as compare
from ctplab.measure.recovery import Recovery, arm_scores, from_scores
from ctplab.models import Model, Tokenizer
from ctplab.prompts.arms import Arm, arms
from ctplab.prompts.prefix import PAPER_HARD_PROMPT, AnyPrefix, none
from ctplab.runs.study import Study
from ctplab.scores import WindowScores
from ctplab.specs import PromptSpec
from ctplab.text.corpora import Corpus, Split, corpus

LEARNED = ("full+own", "lora")
USUAL_LENGTHS = (128, 256, 512, 1024)
"""Window lengths to try if a prompt's file does not name its own."""


@dataclass(frozen=True)
class Controlled:
    """Recovery by corpus, and the learned controls that could not be made, with the reason."""

    corpora: dict[str, Recovery]
    left_out: dict[str, str]
    fidelity: dict[str, dict[str, Fidelity]]
    """Corpus -> arm -> how close it is to the full model; empty unless asked for."""
    costs: dict[str, Cost]
    """Arm -> what it costs beyond the compressed model. Controls on the full model have no entry."""


def recipe_of(saved: SavedPrompt, tokenizer: Tokenizer) -> tuple[PromptSpec, Split, Split]:
    """(recipe, training split, validation split) of a learned prompt.

    Raises InputError if the file does not name them, or if the text here is not the text that it was learned on.
    """
    info = saved.info
    if not isinstance(info.get("spec"), dict) or not info.get("corpus"):
        raise InputError("the prompt's file does not say by which recipe and on which corpus it was learned")
    try:
        spec = PromptSpec.from_json(info["spec"])
    except InputError as error:
        raise InputError(f"the recipe in the prompt's file is damaged: {error}") from None
    if info.get("kind", "rows") != "rows" or spec.init == "prompt" or "cut" in info:
        raise InputError("the prompt was not learned from a fresh start as rows, which is what can be repeated")
    lengths = [info["seq_len"]] if isinstance(info.get("seq_len"), int) else USUAL_LENGTHS
    text = corpus(info["corpus"], tokenizer, lengths[0])
    for length in lengths:
        train = replace(text.train, seq_len=length)
        if train.fingerprint == info.get("corpus_fingerprint"):
            spec = replace(spec, noise=0.0)  # the controls have no rounding error to be noisy about
            return spec, train, replace(text.validation, seq_len=length)
    raise InputError(f"{info['corpus']} is not the same text here as where the prompt was learned")


def recover_with_controls(
    study: Study,
    tag: str,
    small: Model,
    saved: SavedPrompt,
    corpora: Sequence[Corpus],
    keep: Keep,
    *,
    own: AnyPrefix | None = None,
    others: Sequence[Arm] = (),
    skip: Collection[str] = (),
    more_bytes: Mapping[str, int] | None = None,
    fidelity: bool = False,
    times: bool = False,
    limit: int | None = None,
    batch: int = 16,
    seed: int = 0,
) -> Controlled:
    """Score every arm on the test splits of ``corpora``. ``small`` is ``study.full`` compressed to the level ``tag``.

    ``own``: a prompt already learned on the full model. ``others``: arms to score beside them, such as tuned models of
    the same bytes, and ``more_bytes`` by name if a model of theirs is larger. ``skip``: learned controls to leave out.
    ``fidelity``: also compare every arm with the full model, target by target, which doubles the work. ``times``: also
    measure what each arm costs in time.
    """
    wanted = [name for name in LEARNED if name not in skip and not (name == "full+own" and own is not None)]
    left_out: dict[str, str] = {}
    recipe: Any = None
    if wanted:
        try:
            recipe = recipe_of(saved, study.tokenizer)
        except InputError as error:
            left_out, wanted = dict.fromkeys(wanted, str(error)), []
    if "full+own" in wanted:
        spec, train, validation = recipe
        own = study.prompt("full", _name(spec, train), study.full, train, validation, spec).prefix
    scores: dict[str, dict[str, WindowScores]] = {}
    close: dict[str, dict[str, Fidelity]] = {}
    settings: dict[str, Any] = {"limit": limit, "batch": batch, "keep": keep, "progress": study.progress}

    paid: dict[str, Cost] = {}

    def price(found: Sequence[Arm], extra: Mapping[str, int] | None) -> None:
        on_small = [arm for arm in found if arm.model is not study.full]
        new = costs(on_small, extra)
        paid.update(with_times(new, on_small, full, seed=seed, progress=study.progress) if times else new)

    def measure(found: Sequence[Arm], text: Corpus) -> None:
        scores.setdefault(text.name, {}).update(arm_scores(found, text.test, **settings))
        for arm in found if fidelity else ():
            if arm.name != "full":
                name = f"{text.name}--{arm.name}--against"
                close.setdefault(text.name, {})[arm.name] = compare(arm, full, text.test, name=name, **settings)

    full = Arm("full", study.full, none(study.full))
    usual: list[Arm] = []
    for text in corpora:
        usual = arms(
            study.full, small, PAPER_HARD_PROMPT, saved.prefix, controls=True, tokenizer=study.tokenizer,
            initial=saved.initial, text=text.validation.stream, full_own=own, seed=seed,
        )  # fmt: skip
        measure([*usual, *others], text)
    price([*usual, *others], more_bytes)
    if "lora" in wanted:
        spec, train, validation = recipe
        try:
            with study.adapted(tag, _name(spec, train), small, train, validation, same_budget(spec)) as adapted:
                adapter = Arm("lora", adapted, none(adapted))
                for text in corpora:
                    measure([adapter], text)
                price([adapter], {"lora": HALF * sum(p.numel() for p in adapted.parameters() if p.requires_grad)})
        except InputError as error:  # PEFT is optional and does not know every model
            left_out["lora"] = str(error)
    found = {text.name: from_scores(scores[text.name], seed=seed) for text in corpora}
    return Controlled(found, left_out, close, paid)


def _name(spec: PromptSpec, train: Split) -> str:
    return f"{train.name}-k{spec.tokens}-s{spec.seed}"
