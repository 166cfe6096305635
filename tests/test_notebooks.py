"""Every notebook runs top to bottom, on smaller settings, and its closing assertions hold."""

import importlib.util
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
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
