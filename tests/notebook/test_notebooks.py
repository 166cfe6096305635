"""Every notebook runs top to bottom, on smaller settings, and its closing assertions hold."""

import ast
import importlib.util
from pathlib import Path

import pytest
from conftest import SHARED, tiny

from ctplab.atlas.registers import document
from ctplab.models.known import MODELS

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
nbformat = pytest.importorskip("nbformat", reason="needs Jupyter: pip install 'ctplab[notebooks]'")
pytest.importorskip("nbclient", reason="needs Jupyter: pip install 'ctplab[notebooks]'")
pytest.importorskip("ipykernel", reason="needs Jupyter: pip install 'ctplab[notebooks]'")

_spec = importlib.util.spec_from_file_location("notebooks_run", NOTEBOOKS / "run.py")
assert _spec is not None and _spec.loader is not None
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)

# Steps and questions stay as they are: some assertions are about differences that fewer would not show.
SMALLER = {
    "01_compress": {"WINDOWS": 24},
    "02_hard_prompt": {"WINDOWS": 24},
    "03_soft_prompt": {"WINDOWS": 24, "FEWER": (8,)},
    "04_transfer": {},
    "05_inspect": {"WINDOWS": 24},
}
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


EXPLORERS = ("01_compress", "03_soft_prompt", "04_transfer", "05_inspect")
#: Every control of the notebook's explorer is moved by one place: the picture must change.
MOVE = """
for name, control in playing.controls.items():
    before = playing.picture
    control.index = (control.index + 1) % len(control.options)
    assert playing.picture != before, name
"""
#: Just enough to run every cell: what is asserted of any model must not need more.
LITTLE = {"WINDOWS": 6, "SAMPLES": 16, "K": 6, "STEPS": 4, "FEWER": (3,), "QUESTIONS": 6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder for all: what one notebook has learned, the next finds there."""
    return str(tmp_path_factory.mktemp("runs"))


def test_all_five_are_there():
    assert [path.stem for path in FILES] == list(SMALLER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs_and_its_assertions_hold(path, runs):
    shared = {} if path.stem == "01_compress" else {"RUNS": runs}
    run.execute(path, SMALLER[path.stem] | shared)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_outputs_are_whole_and_name_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "execute it again: make notebooks-run"
    assert not run.machine_paths(notebook)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert path.stat().st_size < 700_000  # a code host shows it without asking


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_parameters_cell_before_all_code(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    tagged = [i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", ())]
    assert tagged == [0]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, tokenizer):
    """Parameters for another model and other text: one from outside where there is one, else a random one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    stories = SHARED / "models" / "tinystories-656k"
    if stories.exists():
        data = SHARED / "data"
        text, other = data / "tinystories" / "v1_valid_head.txt", data / "ptb" / "ptb.valid.txt"
    else:
        stories, text, other = folder / "model", folder / "text.txt", folder / "other.txt"
        tiny("llama").save_pretrained(stories)
        tokenizer.save_pretrained(stories)
        text.write_text("\n\n".join(document("atlas-web", "train", i) for i in range(600)))
        other.write_text("\n\n".join(document("atlas-news", "train", i) for i in range(600)))
    names = {"MODEL": str(stories), "CORPUS": f"file:{text}", "OTHERS": (f"file:{other}",)}
    return LITTLE | names | {"RUNS": str(folder / "runs")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs_on_another_model_and_its_explorer_moves(path, elsewhere):
    pytest.importorskip("ipywidgets", reason="needs Jupyter: pip install 'ctplab[notebooks]'")
    source = next(
        c.source for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", ())
    )
    changes = {name: value for name, value in elsewhere.items() if f"{name} =" in source}
    done = run.execute(path, changes, also=MOVE if path.stem in EXPLORERS else "")
    said = "".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", ()))
    assert "Do they hold here too?" in said


#: Settings for a model of 135 M weights: about three minutes of one core.
REAL = {"MODEL": "smollm2", "CORPUS": "docs", "BITS": 3, "GROUP": None, "K": 16, "STEPS": 4, "WINDOWS": 2}
REAL |= {"QUESTIONS": 16}


@pytest.mark.slow
@pytest.mark.skipif(not MODELS["smollm2"].folder.is_dir(), reason="needs smollm2: ctplab get smollm2")
def test_one_notebook_runs_on_a_real_model(tmp_path):
    done = run.execute(NOTEBOOKS / "02_hard_prompt.ipynb", REAL | {"RUNS": str(tmp_path)}, timeout=3600)
    said = "".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", ()))
    assert "Do they hold here too?" in said and "on running text every hard prompt does harm" in said


@pytest.mark.parametrize("stem", EXPLORERS)
def test_an_explorer_is_committed_as_a_picture(stem):
    notebook = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    (shown,) = [cell.outputs for cell in notebook.cells if cell.source.endswith("\nplaying")]
    assert ["image/png" in output.data for output in shown] == [True]
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not any(run.WIDGET in kinds for kinds in data)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_function_is_longer_than_five_lines(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
            assert all((f.end_lineno or 0) - f.lineno < 5 for f in functions)
