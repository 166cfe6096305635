"""Text as ids, in one piece, if the machine has the memory for it."""

from ctplab.errors import InputError
from ctplab.machine import free_memory
from ctplab.models import Tokenizer

BYTES_A_CHARACTER = 200
"""What fast tokenizers need at their peak: 95 to 226 were measured, on DNA and on Chinese."""


def all_tokens(tokenizer: Tokenizer, text: str, name: str) -> list[int]:
    """The ids of a whole text, called ``name`` in messages. Raises InputError if memory would not do.

    A tokenizer that runs out of memory ends the process without a word.
    """
    need, free = len(text) * BYTES_A_CHARACTER, free_memory()
    if need > free:
        raise InputError(
            f"{name}: {len(text) / 1e6:.0f} million characters take about {need / 1e9:.1f} GB of memory to tokenise, "
            f"and {free / 1e9:.1f} GB are free; give a smaller file"
        )
    return tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
