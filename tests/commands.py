"""The command line as a test calls it: exit code, output, one line for bad input."""

import json

from ctplab.cli import main


def run(capsys, *arguments: str):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def run_json(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    assert out.count("\n") == 1, "standard output holds more than one JSON object"
    return json.loads(out)


def refused(capsys, *arguments) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "", (code, out)
    line = err.split("\r")[-1]  # progress bars wipe themselves before it
    assert line.count("\n") == 1 and line.startswith("ctplab: ") and "Traceback" not in err, err
    return line
