"""Modules import only from the floors below them, none of them round, and importing does nothing else."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "ctplab"
FLOORS = [
    {"errors", "starting"},
    {"machine", "parallel", "recording", "text_files", "scores"},
    {"disk", "progress", "specs", "tensor_files"},
    {"models", "atlas"},
    {"text"},
    {"compression", "prompts"},
    {"formats"},
    {"decoding", "learning"},
    {"measure", "inspect"},
    {"runs"},
    {"show"},
    {"demo", "paper", "sweep"},
    {"notebook"},
    {"app"},
    {"cli"},
]
"""A package or module of ``ctplab`` may import what stands on lower floors, and its own."""
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = [p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__", "__main__")]
TENSORS_ONLY = (
    "compression/columns",
    "compression/grid",
    "compression/hessian",
    "compression/obs",
    "compression/packing",
    "learning/objective",
)


def name_of(path: Path) -> str:
    return ".".join(("ctplab", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


KNOWN = {name_of(path) for path in ROOT.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= KNOWN else names | {node.module}
    return found


def own(path: Path) -> set[str]:
    """Packages of ours that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("ctplab.")} & set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert package in FLOOR, f"{package} stands on no floor: name it in FLOORS"
    above = {name for name in own(path) if name != package and FLOOR[name] >= FLOOR[package]}
    assert not above, f"{path.name} (floor {FLOOR[package]}) imports {above}"


def test_no_import_goes_round():
    """Inside a package too."""
    graph = {name_of(path): (imports(path) & KNOWN) - {name_of(path)} for path in MODULES}
    while ends := {name for name, below in graph.items() if not below & set(graph)}:
        graph = {name: below for name, below in graph.items() if name not in ends}
    assert not graph, f"imports in a circle: {sorted(graph)}"


def test_every_module_has_a_user():
    """What only tests import is dead."""
    entries = {name for name in KNOWN if name.endswith("__main__")} | {"ctplab"}
    used = set().union(*(imports(path) for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "app").glob("*.py")]))
    notebooks = "".join(path.read_text() for path in (ROOT.parent / "notebooks").glob("*.ipynb"))
    used |= {f"ctplab.{name}" for name in re.findall(r"from ctplab\.([\w.]+) import", notebooks)}
    used |= {f"ctplab.{a}.{b}" for a, b in re.findall(r"from ctplab\.([\w.]+) import (\w+)", notebooks)}
    packages = {name_of(path) for path in ROOT.rglob("__init__.py")}
    assert sorted(KNOWN - used - entries - packages) == []


@pytest.mark.parametrize("name", TENSORS_ONLY)
def test_pure_maths_knows_no_modules_or_prints(name):
    path = ROOT / f"{name}.py"
    assert not {"torch.nn.Module", "torch.nn.Linear", "torch.nn.Parameter", "transformers"} & imports(path)
    assert "print(" not in path.read_text()


def test_the_longest_file_is_short():
    lengths = {path: len(path.read_text().split("\n")) for path in MODULES}
    assert max(lengths.values()) < 280, max(lengths, key=lambda path: lengths[path])


def test_no_package_is_hidden_by_a_function():
    import ctplab

    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert not [name for name in packages if callable(getattr(ctplab, name, None))]


def test_import_changes_no_global_state():
    code = (
        "import torch; a = (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed());"
        "import ctplab; b = (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed());"
        "import sys; assert a == b; assert 'transformers.models' not in sys.modules; assert 'gradio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
