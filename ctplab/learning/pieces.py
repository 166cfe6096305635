"""How much of a batch a card takes at once: chunks of logits, and pieces of the batch.

Both are chosen here, from what was measured on a card (``docs/speed.md``). Larger ones launch fewer kernels, and take
more memory.
"""

import torch

#: Number of values in the largest (rows, V) buffer: 16 MB in fp32.
CHUNK = 1 << 22
#: The same on a card, at most. At 2^22 a step of 16 x 512 tokens makes 96 little losses.
CARD_CHUNK = 1 << 26
BYTES = 12  # a value at the peak: logits and gradient in half precision, log-probabilities twice in fp32
SHARE = 8  # a chunk takes at most this fraction of a card's free memory
PIECE = 6e12
"""Operations that keep a large card busy for 8 ms: beside them a piece's launches take no time."""


def chunk_on(device: torch.device) -> int:
    """The number of values in a chunk of logits on ``device``: a power of two, by a card's free memory."""
    if device.type != "cuda":
        return CHUNK
    fit = torch.cuda.mem_get_info(device)[0] // SHARE // BYTES
    return min(CARD_CHUNK, max(CHUNK, 1 << max(fit, 1).bit_length() - 1))


def pieces_on_card(weights: int, batch: int, length: int) -> int:
    """Pieces of a batch of windows that pass through so many weights. Half a batch keeps half for its backward pass.

    A product of forward and backward pass takes four operations a weight and token: the weights have no gradient.
    """
    return 2 if batch > 1 and 4 * weights * batch * length >= 2 * PIECE else 1
