"""The full model as teacher: in memory, or as its top-K log-probabilities on disk.

For a batch, a teacher's :meth:`target` returns a function from rows of the batch to log-probabilities (n, V). So these
too exist for only a few rows at a time (see :mod:`ctplab.learning.objective`).
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ctplab import tensor_files
from ctplab.disk import LOG, whole
from ctplab.errors import InputError
from ctplab.learning.fused import Fused
from ctplab.learning.objective import Target, Taught, chunks, with_tail
from ctplab.models import Model
from ctplab.models.anatomy import embeddings
from ctplab.models.fingerprints import tensor_fingerprint, weights_fingerprint
from ctplab.progress import Progress, silent
from ctplab.prompts.head import halves
from ctplab.scores import predicted, target_rows
from ctplab.text.corpora import Split


class MemoryTeacher:
    """A teacher that runs its model on every batch."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.fingerprint = weights_fingerprint(model)
        self._halves = halves(model)
        self._fused = Fused.of(model)
        self.width = self._halves.width

    @torch.no_grad()
    def target(self, numbers: Tensor, ids: Tensor, masks: Tensor | None = None) -> Taught:
        """For windows ``ids`` (B, T) with their masks (B, T): what the model says about the targets."""
        with self._fused.on() if self._fused else nullcontext():
            states, _ = predicted(self._halves.states([], ids), ids, masks)
        return Taught(states, self._halves.head)


@dataclass(frozen=True)
class TopKTeacher:
    """The K most likely next tokens at every position of a split, with their log-probabilities."""

    top: Tensor  # (N, T - 1, K) fp16 log-probabilities
    ids: Tensor  # (N, T - 1, K) int32
    vocabulary: int
    corpus: str
    """Fingerprint of the split."""

    @property
    def fingerprint(self) -> str:
        return tensor_fingerprint(self.top, self.ids)

    def near(self, device: torch.device) -> "TopKTeacher":
        """The same on ``device``, if that is a card with room: they may take a quarter of its free memory."""
        size = sum(x.numel() * x.element_size() for x in (self.top, self.ids))
        if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] // 4:
            return self
        return replace(self, top=self.top.to(device), ids=self.ids.to(device))

    def target(self, numbers: Tensor, ids: Tensor, masks: Tensor | None = None) -> Target:
        """For windows number ``numbers`` (B,): the targets' log-probabilities with the tail filled in, by rows."""
        numbers = numbers.to(self.top.device)
        top, tokens = self.top[numbers].flatten(0, 1), self.ids[numbers].flatten(0, 1)
        chosen = target_rows(masks)
        if chosen is not None:
            top, tokens = top[chosen.to(top.device)], tokens[chosen.to(top.device)]
        top, tokens = top.to(ids.device), tokens.to(ids.device)
        return lambda rows, student: with_tail(top[rows].to(student.dtype), tokens[rows].long(), student)


Teacher = MemoryTeacher | TopKTeacher


def full_of(teacher: Model | Teacher | None) -> Model | None:
    """The full model that teaches, if its weights are in memory."""
    if isinstance(teacher, MemoryTeacher):
        return teacher.model
    return None if isinstance(teacher, TopKTeacher) else teacher


def cached_teacher(
    model: Model, split: Split, folder: Path, *, k: int = 64, batch: int = 16, progress: Progress = silent
) -> TopKTeacher:
    """Load the teacher of ``split`` from ``folder``, or compute it once for this model, these windows and this K.

    It takes 6 K bytes per token. A damaged file is made anew. Raises InputError if K is not in 1 .. V, or if the disk
    refuses.
    """
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    if not 1 <= k <= vocabulary:
        raise InputError(f"the teacher's top-k must be in 1 .. {vocabulary}, not {k}")
    weights = weights_fingerprint(model)
    path = folder / f"teacher-{weights}-{split.fingerprint}-top{k}.safetensors"
    tensors: dict[str, Tensor] = {}
    if os.path.lexists(path):
        try:
            tensors, _ = tensor_files.read_sealed(path)
        except InputError as error:
            LOG.warning("%s; it is made anew", error)
    if not tensors:
        parts = list(
            progress(_top(model, split.windows, k, batch), total=-(-len(split.windows) // batch), label="teacher")
        )
        top, ids = (torch.cat(found) for found in zip(*parts, strict=True))
        tensors = {"top": top, "ids": ids}
        with whole(path) as temporary:
            tensor_files.write_sealed(tensors, {}, temporary)
    return TopKTeacher(tensors["top"], tensors["ids"], vocabulary, split.fingerprint)


@torch.no_grad()
def _top(model: Model, windows: Tensor, k: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (log-probabilities, ids) of every batch of windows, each (B, T - 1, k)."""
    cut = halves(model)
    for ids in windows.split(batch):
        states = cut.states([], ids.to(embeddings(model).device))[:, :-1]
        flat = states.flatten(0, 1)
        found = []
        for rows in chunks(len(flat), int(model.get_output_embeddings().weight.shape[0])):
            logp = cut.head(flat[rows]).float().log_softmax(-1)
            found.append(logp.topk(k, -1))
        shape = (*states.shape[:2], k)
        yield (
            torch.cat([f.values for f in found]).view(shape).half().cpu(),
            torch.cat([f.indices for f in found]).view(shape).int().cpu(),
        )
