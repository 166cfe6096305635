"""``python -m ctplab.atlas train``: make the embedded model again, or another size of it."""

import argparse
from dataclasses import fields
from pathlib import Path

from ctplab.atlas.train import Recipe, train
from ctplab.disk import data_dir


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ctplab.atlas", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train", help="train the embedded model (resumes)")
    command.add_argument("--out", type=Path, default=data_dir() / "model")
    command.add_argument("--device", default="cpu")
    command.add_argument("--compile", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    for field in fields(Recipe):
        if field.type in (int, float):
            command.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    options = vars(parser.parse_args())
    out, device, compiled = options.pop("out"), options.pop("device"), options.pop("compile")
    train(out, Recipe(**options), device, compiled)


if __name__ == "__main__":
    main()
