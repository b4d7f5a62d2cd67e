"""How many images to take at once where the user does not say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, IterableDataset

from bitsplit.data.repeat import random_state_kept

LARGEST = 64
# Of eight photos of 224 pixels.  The feature maps of many more leave the processor's caches, and each is
# memory fresh from the system, so that a network takes up to five times as long.
CPU_VALUES = 8 * 3 * 224 * 224


def usual_batch_size(data: Any, device: torch.device) -> int:
    """For a tensor of images, or a data set, that runs on ``device``."""
    values = _values_of_one(data)
    if device.type != "cpu" or values == 0:
        return LARGEST
    return min(LARGEST, max(1, CPU_VALUES // values))


def _values_of_one(data: Any) -> int:
    """Values in the first image; 0 where there is no way to look at it."""
    if isinstance(data, IterableDataset) or not isinstance(data, Tensor | Dataset) or len(data) == 0:
        return 0
    with random_state_kept():  # a data set may augment at random
        first = data[0]
    return max((leaf.numel() for leaf in pytree.tree_leaves(first) if isinstance(leaf, Tensor)), default=0)
