"""Execute notebooks in place, or with other parameters for a test. ``python notebooks/run.py [NAME ...]``."""

import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(
    path: Path, changes: dict[str, Any] | None = None, *, also: str = "", timeout: int = 1800
) -> nbformat.NotebookNode:
    """Run a notebook top to bottom, then the code ``also``. Raises at the first error.

    ``changes`` replace names of its ``parameters`` cell.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(also)] if also else []
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            lines = [f"{name} = {value!r}" for name, value in (changes or {}).items()]
            cell.source = "\n".join([cell.source, *lines])
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": HERE}}).execute()
    return notebook


WIDGET = "application/vnd.jupyter.widget-view+json"


def lasting(output: nbformat.NotebookNode) -> bool:
    """Whether an output stays: standard error does not, nor does the empty place of a live figure that has gone."""
    return output.get("name") != "stderr" and output.get("data") != {"text/plain": ""}


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run (times, Python's version, standard error) or needs a kernel."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if lasting(output)]
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)
    return notebook


def machine_paths(notebook: nbformat.NotebookNode) -> list[str]:
    """Absolute paths in the text that would be committed (pictures aside: their code has slashes too)."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [json.dumps([o.get("text"), o.get("data", {}).get("text/plain"), o.get("traceback")]) for o in outputs]
    return re.findall(r"(?<![\w/])/\w+/[\w./-]+", " ".join(texts))


def main(names: list[str]) -> None:
    there = sorted(HERE.glob("*.ipynb"))
    if unknown := set(names) - {path.stem for path in there}:
        print(f"no notebook {min(unknown)}: there are {', '.join(path.stem for path in there)}", file=sys.stderr)
        sys.exit(2)
    for path in there:
        if not names or path.stem in names:
            began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            nbformat.write(tidied(execute(path)), path)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{path.name}: {time.perf_counter() - began:.0f} s ({cpu:.0f} s of one core)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
