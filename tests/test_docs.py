"""README and docs/ say what is true: commands parse, scripts run, links lead somewhere, every module is named."""

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest

import ctplab as ctp
from ctplab.cli import parser
from ctplab.paper import printed

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "notebooks" / "README.md"]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(page.read_text()) if name == language]


def commands(page: Path) -> list[list[str]]:
    """What follows ``ctplab`` on every command line in a fence, comments off and continued lines joined."""
    found = []
    for block in blocks(page, "") + blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if re.match(r"(\S+ .*-m )?ctplab ", line) else []
            if words:
                found.append(words[words.index("ctplab") + 1 :])
    return found


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Headings as code hosts turn them into anchors."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def subcommands(among: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """All of them by their full name, such as ``export model``."""
    found = {}
    for action in among._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                below = subcommands(sub)
                found |= {f"{name} {what}": each for what, each in below.items()} if below else {name: sub}
    return found


def test_commands_are_found():
    """Else the tests of them would test nothing."""
    assert len([command for page in PAGES for command in commands(page)]) > 50


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_line_parses(page):
    for words in commands(page):
        try:
            parser().parse_args(words)
        except ctp.InputError as error:
            pytest.fail(f"ctplab {shlex.join(words)}: {error}")


def test_every_command_is_shown_somewhere():
    shown = [" ".join(words) for page in PAGES for words in commands(page)]
    missing = [name for name in subcommands(parser()) if not any(f"{line} ".startswith(f"{name} ") for line in shown)]
    assert missing == []


def test_options_that_the_guide_explains_exist():
    known = {option for sub in subcommands(parser()).values() for option in sub._option_string_actions}
    told = re.findall(r"`(--[a-z-]+)", FENCE.sub("", GUIDE))
    assert len(told) > 30
    assert not set(told) - known


def test_readme_is_one_page():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_lines_are_short(page):
    assert [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"\w+:", link):
            continue  # another site
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_what_the_prose_names_is_there(page):
    """Paths, make's targets, commands with their options, and public names inside sentences."""
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = subcommands(parser())
    for code in (" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(page))):
        if re.fullmatch(r"(ctplab|app|tests|benchmarks|notebooks|docs|data)/[\w./-]+", code):
            assert (ROOT / code).exists() or code == "benchmarks/results/", f"{code}: no such path, and no result"
        if target := re.fullmatch(r"make ([a-z][\w-]*)", code):
            assert target[1] in targets, code
        for name in re.findall(r"\bctp\.([a-z]\w*|[A-Z][a-z]\w*)", code):
            assert hasattr(ctp, name), code
        if re.match(r"ctplab [a-z]", code):
            words = code.split()[1:]
            group = [name for name in known if name == words[0] or name.startswith(f"{words[0]} ")]
            assert group, code
            options = {option for name in group for option in known[name]._option_string_actions}
            assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, code


def test_every_page_is_linked():
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in LINK.findall(prose(page))}
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page not in linked] == []


def test_every_module_has_its_line():
    """A section a folder, a row a file; an empty ``__init__`` has nothing to say."""
    named = set()
    for section in re.split(r"^## ", (ROOT / "docs" / "files.md").read_text(), flags=re.MULTILINE)[1:]:
        folder = section.split("\n")[0].strip("`")
        named |= {f"{folder}{file}" for file in re.findall(r"^\| `(\w+\.py)` \|", section, re.MULTILINE)}
    files = [path for package in ("ctplab", "app") for path in (ROOT / package).rglob("*.py")]
    there = {str(path.relative_to(ROOT)) for path in files if path.stat().st_size}
    assert sorted(there - named) == [], "modules without a line in docs/files.md"
    assert sorted(named - there) == [], "lines in docs/files.md without a module"


def test_paths_in_the_map_exist():
    drawn = re.findall(r"^ ctp\.\w+ +(\S+\.py) ", README.read_text(), re.MULTILINE)
    assert len(drawn) == 7
    rows = re.findall(r"^\| (`[^|]*`) \|", README.read_text(), re.MULTILINE)
    packages = re.findall(r"`(\w+)/?`", " ".join(rows))
    for name in [*drawn, *packages]:
        assert (ROOT / "ctplab" / name).exists() or (ROOT / "ctplab" / f"{name}.py").exists(), name
    drawn_or_told = {path.name.removesuffix(".py") for path in (ROOT / "ctplab").glob("[a-z]*")}
    assert drawn_or_told == set(packages)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_compiles_and_knows_its_names(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ctp":
                assert hasattr(ctp, node.attr), f"ctp.{node.attr}"


def test_the_readme_script_runs_as_written(capsys):
    """With fewer steps and windows: ten lines, and a perplexity for each of the four arms."""
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line]) == 10
    for written, small in (("steps=300", "steps=2"), ("sample(128,", "sample(4,"), ("limit=96", "limit=2")):
        assert written in code
        code = code.replace(written, small)
    exec(compile(code, "README.md", "exec"), {})
    assert re.findall(r"^(\w+) ppl \d", capsys.readouterr().out, re.MULTILINE) == ["full", "compressed", "hard", "soft"]


def test_the_fingerprints_are_the_papers_numbers():
    """docs/method.md: printed numbers stand in the paper's tables, corrected ones follow from them."""
    text = (ROOT / "docs" / "method.md").read_text()
    rows = re.findall(r"^\|[^|]*\|[^|]*\| (\d+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    known = {(value.k, value.printed) for table in printed.TABLES.values() for value in table.values}
    assert len(rows) == 9
    for k, shown, corrected in rows:
        assert (int(k), float(shown)) in known
        assert f"{printed.undo(float(shown), int(k)):.2f}" == corrected
