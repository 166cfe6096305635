"""``docs``: real English prose, written by people, harvested from docstrings on the user's own machine.

Sources: the Python standard library and the locked packages below, as installed. Nothing is redistributed. Another
machine may have other versions; the corpus fingerprint shows this. Order, deduplication and splits are deterministic
for given sources.
"""

import hashlib
import inspect
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("networkx", "numpy", "matplotlib", "sympy", "torch", "accelerate", "huggingface_hub", "jinja2", "fsspec")
SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "site-packages", "lib2to3", "idlelib", "turtledemo"}
NOT_PROSE = re.compile(r">>>|::|---|^(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Keyword \w+):")
DOCSTRING = re.compile(r'(?:\A|:[ \t]*\n)\s*[rRuU]?"""(.*?)"""', re.DOTALL)
MAX_CHARACTERS = 16_000_000  # of source prose: bounds the harvest's time and the cache's size


def _sources() -> Iterator[Path]:
    roots = [Path(sysconfig.get_path("stdlib"))]
    roots += [Path(sysconfig.get_path("purelib")) / package for package in PACKAGES]
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
                yield path


def _is_prose(paragraph: str) -> bool:
    """Sentences, not signatures, tables or code: mostly lower-case words, ending like a sentence."""
    if len(paragraph) < 60 or not paragraph.isascii() or NOT_PROSE.search(paragraph):
        return False
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return letters > 0.9 * len(paragraph) and paragraph.rstrip()[-1] in ".:!?" and paragraph[0].isupper()


def prose(docstring: str) -> str:
    """The paragraphs of a docstring that read as sentences, unwrapped, joined by newlines."""
    blocks = re.split(r"\n\s*\n", textwrap.dedent(inspect.cleandoc(docstring)))
    paragraphs = (re.sub(r"\s+", " ", re.sub(r"[`*]+", "", block)).strip() for block in blocks)
    return "\n".join(paragraph for paragraph in paragraphs if paragraph and _is_prose(paragraph))


def _docstrings(source: str) -> list[str]:
    """Strings that open a module, class or function. A regex finds them: parsing takes ten times as long."""
    return [found[1] for found in DOCSTRING.finditer(source) if len(found[1]) > 80]


def harvest() -> dict[str, list[str]]:
    """Documents by split: 90% train, 5% validation, 5% test, by a hash of each document's text."""
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    total = 0
    for path in _sources():
        try:
            docstrings = _docstrings(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue  # templates and test data with a .py name
        for docstring in docstrings:
            lines = [line for line in prose(docstring).split("\n") if line and line not in seen]
            seen.update(lines)
            if not lines:
                continue
            text = "\n".join(lines)
            bucket = hashlib.sha256(text.encode()).digest()[0] % 20
            splits["test" if bucket == 0 else "validation" if bucket == 1 else "train"].append(text)
            total += len(text)
        if total > MAX_CHARACTERS:
            break
    return splits
