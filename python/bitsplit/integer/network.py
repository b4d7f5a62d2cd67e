"""A quantized network whose scales are powers of two, run in integers."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitsplit.errors import IntegerError, first_line
from bitsplit.integer.layers import IntegerLayer, IntegerQuantizer
from bitsplit.integer.sums import on_wide_sum
from bitsplit.integer.tensor import EXACT_IN_FLOAT32, IntegerTensor
from bitsplit.network.layers import kind_of
from bitsplit.quantizers import quantized_layers


def _refuse_float(*_: Any, **__: Any) -> None:
    """The ``forward`` of a layer that nothing quantizes."""
    raise IntegerError("its weights and its input must be quantized")


class IntegerNetwork:
    """``model`` without a float between its first quantizer and its output.

    Every layer multiplies int16 levels and adds up in int32, which its weights prove to be wide enough.
    Numbers are rounded at quantizers only, by a shift; behind a mean over a number of values that is no power
    of two the quantizer divides by that number too.  Sums of tensors and the output stay exact.  The model's
    own code runs, so it may do whatever ``bitsplit.integer.functions`` has a form for.

    Raises ``IntegerError``: a layer is not quantized, a scale is no power of two, sums may leave int32.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(model).eval()
        self._at = ""
        self._wide_sums: dict[str, None] = {}  # in the order met
        layers = dict(quantized_layers(model))
        if not layers:
            raise IntegerError("the model is not quantized")
        self._layers = {name: IntegerLayer(name, layer) for name, layer in layers.items()}
        for name, layer in quantized_layers(self._model):
            layer.forward = self._layers[name]
            quantizer = IntegerQuantizer(layer.input_quantizer)
            layer.input_quantizer.forward, layer.input_quantizer.read = quantizer, quantizer.read
        for name, module in self._model.named_modules():
            if name not in layers and kind_of(module) is not None:
                module.forward = _refuse_float
            module.register_forward_pre_hook(partial(self._enter, name))

    def _enter(self, name: str, *_: Any) -> None:
        self._at = name

    @property
    def beyond_float32(self) -> tuple[str, ...]:
        """Where sums leave the integers that float32 can tell apart.

        Layers whose weights allow it, and sums of tensors and means that did it in what was run so far, as
        ``"add behind layer"``.  Without any the simulated network computed the same numbers, bit for bit,
        but for the last place of an output that is itself a mean over a number that is no power of two.
        """
        layers = (name for name, layer in self._layers.items() if layer.most >= EXACT_IN_FLOAT32)
        return (*layers, *self._wide_sums)

    @torch.no_grad()
    def integers(self, *args: Any, **kwargs: Any) -> Any:
        """The output for these inputs, an ``IntegerTensor`` in place of every tensor."""
        told = on_wide_sum.set(lambda name: self._wide_sums.setdefault(f"{name} behind {self._at}"))
        try:
            return self._model(*args, **kwargs)
        except Exception as error:  # the model's own code meets tensors that it was not written for
            raise IntegerError(f"{self._at or 'the model'}: {first_line(error)}") from error
        finally:
            on_wide_sum.reset(told)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The same as numbers, float32."""

        def number(leaf: Any) -> Any:
            return leaf.numbers().float() if isinstance(leaf, IntegerTensor) else leaf

        return pytree.tree_map_only(Tensor, number, self.integers(*args, **kwargs))
