"""Whatever stands in a file: exit 0 with finite numbers, or exit 2 with one line. Nothing is written elsewhere."""

import json
import shutil
from pathlib import Path

import hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctplab.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about what it finds in damaged files


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    found = tmp_path_factory.mktemp("hostile")
    hostile.build(found, tokenizer)
    return found


def files_of(kind: str, home: Path) -> list[Path]:
    """What can be damaged. A tokenizer.json is the business of the library that reads it."""
    path = home / kind
    if path.is_file():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors") and p.name != "tokenizer.json")


def state_of(place: Path, out: Path) -> dict[str, tuple[int, int]]:
    """Every path beside ``out`` with its size and time."""
    found = [path for path in place.rglob("*") if out not in (path, *path.parents)]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if not path.is_dir()}


def no_constant(name: str):
    raise AssertionError(f"{name} in the output")


def check_answer(arguments, capsys) -> int:
    """Run one command: it must end well or be refused well."""
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    line = err.split("\r")[-1].rstrip("\n").split("\n")[-1]  # notes and progress bars come before it
    assert "Traceback" not in err, err
    if code == 0:
        json.loads(out, parse_constant=no_constant)
    else:
        assert code == 2 and out == "" and line.startswith("ctplab: ") and len(line) < 1000, (code, out, err)
    return code


def try_one(data, home, tmp_path_factory, capsys):
    kind = data.draw(st.sampled_from(sorted(hostile.COMMANDS)), label="kind")
    place = tmp_path_factory.mktemp("case")
    for path in home.iterdir():  # the others are only read: links do
        if path.name == kind:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, place / path.name)
        else:
            (place / path.name).symlink_to(path)
    victim = data.draw(st.sampled_from([path.name for path in files_of(kind, home)]), label="file")
    target = place / kind / victim if (place / kind).is_dir() else place / kind
    told = hostile.damage(target, data.draw)
    before = state_of(place, place / "out")
    arguments = data.draw(st.sampled_from(hostile.COMMANDS[kind](place)), label="command")
    try:
        check_answer(arguments, capsys)
    except BaseException as error:
        error.add_note(f"{told}: {' '.join(map(str, arguments))}")
        raise
    assert state_of(place, place / "out") == before, (told, arguments)
    assert not Path("/escaped").exists() and not (place.parent / "escaped").exists()
    shutil.rmtree(place)


SAME = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


@settings(SAME, max_examples=300)
@given(data=st.data())
def test_three_hundred_hostile_inputs(data, home, tmp_path_factory, capsys):
    try_one(data, home, tmp_path_factory, capsys)
