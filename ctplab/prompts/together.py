"""A prefix and the texts behind it in one pass: all of them stand in one long row.

A prefix's keys and values do not depend on the text behind it. So a learning step need compute them only once for the
whole batch. There are three ways:

    concatenate     every text carries its own copy of the k rows: B k rows too many in every product
    two passes      the rows first, into a cache, then the texts behind it: twice as many operations, half of them small
    one long row    k + B T rows in one pass; only attention takes them apart (``prompts/attention``)

The long row has the products of two passes and the number of operations of one. It needs a model that takes positions
and hands settings on to its attention. So it is tried first, and two passes are the way for all other models.
"""

import torch
from torch import Tensor

from ctplab.models import Model
from ctplab.models.anatomy import embed, embeddings
from ctplab.prompts.attention import Layout, prefix_attention
from ctplab.prompts.compiled import compile_rows
from ctplab.prompts.head import Halves
from ctplab.prompts.ways import TEXTS, allowed, apart, text, ways


def together(model: Model, rows: Tensor, ids: Tensor) -> Tensor:
    """Return the hidden states (B, T, d) of ``ids`` (B, T, no padding) behind ``rows`` (k, d), before the head."""
    layout = Layout(len(rows), *ids.shape)
    table = embeddings(model)
    row = torch.cat([rows.to(table.device, table.dtype), embed(model, ids).flatten(0, 1)])[None]
    places = torch.arange(layout.k + layout.length, device=row.device)
    places = torch.cat([places[: layout.k], places[layout.k :].repeat(layout.batch)])[None]
    ones = torch.ones_like(places)
    with prefix_attention(model):
        states = model.base_model(
            inputs_embeds=row, attention_mask=ones, position_ids=places, use_cache=False, layout=layout
        )[0]
    return states[0, layout.k :].unflatten(0, ids.shape)


@torch.no_grad()
def fits(cut: Halves, k: int, batch: int, length: int) -> bool:
    """Whether the model takes one long row of this size: its states are then those of two passes.

    Compares them on a few tokens, as ``ways`` does. A pass of the real size then shows whether some window needs a mask
    there.
    """
    found = ways(cut.model)
    if not (cut.plain and found.maskless and found.compiled):
        return False
    table = embeddings(cut.model)
    try:
        together(cut.model, table[:1].expand(k, -1), text(cut.model, 0)[:, :1].expand(batch, length))
        return any(_same(cut, text(cut.model, number)) for number in range(TEXTS))
    except (TypeError, ValueError, RuntimeError):  # it knows no such setting, or brings its own attention
        return False


def _same(cut: Halves, ids: Tensor) -> bool:
    """Whether both give the same states of two texts behind three rows; all are taken from ``ids`` (1, n)."""
    rows, texts = embed(cut.model, ids[0, :3]), ids[:, 3:].expand(2, -1)
    kv = compile_rows(cut.model, rows)
    expected = cut.states(kv, texts)
    noise = apart(expected[:, :-1], cut.states(kv, texts[:, :-1]))
    states = together(cut.model, rows, texts)
    return states.shape == expected.shape and apart(expected, states) <= allowed(expected.dtype, noise)
