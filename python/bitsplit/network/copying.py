"""A copy of a user's model to work on, so that the user's own stays as it is."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bitsplit.errors import ModelError


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; tensors with a history, such as the weights of the old weight_norm, lose it."""
    tensors = (value for module in model.modules() for value in vars(module).values())
    with_history = (value for value in tensors if isinstance(value, Tensor) and not value.is_leaf)
    try:
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in with_history})
    except (RuntimeError, TypeError) as error:  # locks, open files
        raise ModelError(f"the model cannot be copied: {error}") from error


def refuse_half(model: nn.Module) -> None:
    """Statistics in 16 bits are too coarse to work with."""
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise ModelError(f"{name} is {parameter.dtype}: second moments need more; pass model.float()")
