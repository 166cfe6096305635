"""Modules import only from the layers below them, and importing does nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "ctplab"
LAYERS = [
    {"errors", "heap", "parallel", "progress", "specs"},
    {"atlas", "models", "paper", "texts", "published", "corpora"},
    {"compress", "prompts"},
    {"measure", "inspect", "memory"},
    {"store", "study", "plots", "plots_measure", "plots_paper", "plots_interactive", "plots_explore", "tables"},
    {"report", "widgets", "live", "claims"},
    {"demo", "controls", "reproduce", "sweep", "explore"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = [p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__", "__main__")]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("ctplab.")} & set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_respect_the_layers(path):
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert layer in LEVEL, f"{layer} has no layer: name it in LAYERS"
    above = {name for name in own(path) if LEVEL[name] > LEVEL[layer]}
    assert not above, f"{path.name} (layer {LEVEL[layer]}) imports {above}"


@pytest.mark.parametrize("name", ["grid", "hessian", "obs", "packing"])
def test_pure_maths_knows_no_modules_or_prints(name):
    source = (ROOT / "compress" / f"{name}.py").read_text()
    assert not {"torch.nn", "transformers"} & imports(ROOT / "compress" / f"{name}.py")
    assert "print(" not in source


@pytest.mark.parametrize("folder, forbidden", [("measure", "plots"), ("inspect", "plots"), ("compress", "prompts")])
def test_neighbours_that_must_not_know_each_other(folder, forbidden):
    assert all(forbidden not in own(path) for path in (ROOT / folder).glob("*.py"))


def test_import_changes_no_global_state():
    code = (
        "import torch; a = (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed());"
        "import ctplab; b = (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed());"
        "import sys; assert a == b; assert 'transformers.models' not in sys.modules; assert 'gradio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
