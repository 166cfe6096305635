"""The windows of a text with their masks, as learning takes them: some numbers at a time, on the model's device."""

from typing import NamedTuple

import torch
from torch import Tensor

from ctplab.errors import InputError
from ctplab.scores import count_targets
from ctplab.text.corpora import Split


class Windows(NamedTuple):
    """Windows and which of their tokens may be targets."""

    ids: Tensor
    """(N, T), on the model's device."""
    masks: Tensor | None
    """(N, T) bool, on the CPU, so that choosing rows by it does not wait for a device; None: all."""

    @classmethod
    def of(cls, split: Split, device: torch.device, limit: int | None = None) -> "Windows":
        """The first ``limit`` windows of a split. Raises InputError if they hold no targets."""
        masks = split.window_masks
        found = cls(split.windows[:limit].to(device), None if masks is None else masks[:limit])
        if not count_targets(*found).any():
            raise InputError(f"{split.name} ({split.split}): no targets in {len(found.ids)} windows; try loss='all'")
        return found

    def take(self, numbers: Tensor) -> "Windows":
        """The windows with these numbers (B,)."""
        return Windows(self.ids[numbers.to(self.ids.device)], None if self.masks is None else self.masks[numbers])

    def targets_of(self, numbers: Tensor) -> int:
        """How many targets the windows with these numbers (B,) have. Asks no device."""
        if self.masks is None:
            return len(numbers) * (self.ids.shape[1] - 1)
        return int(self.masks[numbers][:, 1:].sum())

    @property
    def targets(self) -> int:
        """How many there are."""
        return int(count_targets(*self).sum())
