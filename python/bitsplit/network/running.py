"""Running a model once, so that nothing about it is another afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from bitsplit.device import fresh
from bitsplit.errors import ModelError, first_line
from bitsplit.network.buffers import KeptBuffers

Step = Callable[[nn.Module, Any], Any]


def default_step(model: nn.Module, batch: Any) -> Any:
    """How one batch runs through a model unless the user says otherwise."""
    return model(batch)


def refuse_unseeable(model: nn.Module) -> None:
    """Compiled models hide their modules, lazy ones have no weights yet."""
    compiled = [name or "the model" for name, module in model.named_modules() if hasattr(module, "_orig_mod")]
    if compiled:
        raise ModelError(f"{compiled[0]} is compiled; use the module that torch.compile was given")
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise ModelError(f"scripted or traced modules hide their layers: {scripted[0] or 'the model itself'}")
    lazy = [
        name for name, module in model.named_modules() if any(is_lazy(p) for p in module._parameters.values())
    ]
    if lazy:
        raise ModelError(f"lazy modules have no weights yet; run the model once first: {', '.join(lazy)}")


def attempt(model: nn.Module, batch: Any, step: Step) -> Any:
    """``step(model, batch)``; what it raises says with which shapes."""
    try:
        return step(model, batch)
    except Exception as error:  # the model's own code may raise anything
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
        what = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"the forward of the first batch (tensors of {shapes}) failed: {what}") from error


def outputs_of(model: nn.Module, batch: Any, step: Step) -> list[Tensor]:
    """The floating-point outputs of ``step(model, batch)`` in evaluation mode; nothing else is changed."""
    with unchanged(model), torch.no_grad():
        output = step(model, fresh(batch))
    return [leaf.clone() for leaf in output_tensors(output) if leaf.is_floating_point()]


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors in what a model gives: in containers, and in the attributes of objects of its own."""
    found: list[Tensor] = []
    opened: set[int] = set()
    rest = [output]
    while rest:
        for leaf in pytree.tree_leaves(rest.pop()):
            if isinstance(leaf, Tensor):
                found.append(leaf)
            elif (
                hasattr(leaf, "__dict__")
                and not isinstance(leaf, type | nn.Module)
                and id(leaf) not in opened
            ):
                opened.add(id(leaf))
                rest.append(list(vars(leaf).values()))
    return found


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without attention's fused path; training flags, buffers and random state come back."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = KeptBuffers(model)
    gpus = {parameter.device.index for parameter in model.parameters() if parameter.is_cuda}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in flags:
            module.training = False
        with torch.random.fork_rng(sorted(gpus)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in flags:
            module.training = training
        buffers.restore(look=True)
