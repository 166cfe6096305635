"""The model hub may not be reachable from here. A page should learn that in seconds, not after many retries."""

from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import ctplab as ctp

PATIENCE = 8.0  # seconds until the hub counts as unreachable


def folder(source: str) -> str:
    """The folder of a hub model that was downloaded before; else ``source``, if the hub answers.

    Raises InputError if it does not.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        kept = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        raise ctp.InputError(f"{source!r} is neither a folder here nor the name of a model on the hub") from None
    if isinstance(kept, str):
        return str(Path(kept).parent)
    if not answers(constants.ENDPOINT):
        raise ctp.InputError(
            f"there is no folder {source!r}, and the model hub ({constants.ENDPOINT}) does not answer from here: give "
            "a folder, or one of the models that the lab brings"
        )
    return source


def answers(address: str, patience: float = PATIENCE) -> bool:
    """Whether a server answers within ``patience`` seconds; looking up its name included, which has no limit itself."""
    found: list[bool] = []

    def ask() -> None:
        try:
            urlopen(Request(address, method="HEAD"), timeout=patience).close()
        except HTTPError as error:  # it answered, if only to refuse
            error.close()
        except (OSError, ValueError):
            return
        found.append(True)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return bool(found)
