"""``python -m app`` (or ``ctplab app``): the dashboard on localhost."""

import argparse
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options; without any, the embedded model with what the lab ships."""
    found = argparse.ArgumentParser(prog="python -m app", description=__doc__)
    found.add_argument("--full", default="atlas", metavar="MODEL", help="the uncompressed model")
    found.add_argument("--compressed", action="append", metavar="MODEL", help="a compressed model (repeatable)")
    found.add_argument("--prompt", action="append", metavar="DIR", help="a prompt folder (repeatable)")
    found.add_argument("--runs", default="runs", type=Path, metavar="DIR", help="where results are read and written")
    found.add_argument("--host", default="127.0.0.1")
    found.add_argument("--port", type=int, default=7860)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Load what the options name and serve until Ctrl-C."""
    options = parser().parse_args(arguments)
    from app.bench import Bench, shipped
    from app.server import serve
    from ctplab.errors import InputError

    model, prompt = shipped() if options.full == "atlas" else (None, None)
    try:
        bench = Bench(options.runs)
        for source in [options.full, *(options.compressed or [model])]:
            if source:
                bench.load_model(source)
        for folder in options.prompt or [prompt]:
            if folder:
                bench.load_prompt(folder)
    except InputError as error:
        print(f"ctplab: {error}", file=sys.stderr)
        return 2
    serve(bench, options.host, options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
