"""Hard prompts: the published wordings, and lists of candidates."""

from pathlib import Path

from ctplab.errors import InputError
from ctplab.prompts.prefix import PAPER_HARD_PROMPT
from ctplab.text_files import read_text

WORDINGS = {
    "paper": PAPER_HARD_PROMPT,
    "pruned": "The weight matrix inside the language model contains errors. Make any necessary adjustments to ensure "
    "optimal performance.\n",
    "quantized": "The weight matrix inside the language model has been quantized. Make any necessary adjustments to "
    "ensure optimal performance.",
}
"""``paper``: Figure 1 and section 3.2 of arXiv 2305.11186. ``pruned``, ``quantized``: ``case_study.py`` of its code."""


def wording(name: str) -> str:
    """The text of the preset called ``name``, or ``name`` itself if it is no preset."""
    return WORDINGS.get(name, name)


def read_candidates(path: Path) -> list[str]:
    """Read hard prompts from a text file: separated by blank lines if it has any, else one per line.

    The name of a preset stands for its text. The same text counts once. Raises InputError if the file cannot be read
    or holds no prompt.
    """
    text = read_text(path).strip()
    lines = [line.rstrip() for line in text.split("\n")]
    blocks = "\n".join(lines).split("\n\n") if "" in lines else lines
    found = dict.fromkeys(wording(block.strip("\n")) for block in blocks if block.strip())
    if not found:
        raise InputError(f"{path} holds no candidates; write one a line")
    return list(found)
