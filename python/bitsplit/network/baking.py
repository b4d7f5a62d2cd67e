"""Layers whose weight is computed (standardised, normalized, parametrised) made into layers that store it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bitsplit.errors import ModelError
from bitsplit.network.fold import LARGEST_ERROR, relative_error
from bitsplit.network.layers import input_of, kind_of
from bitsplit.network.model import Network
from bitsplit.network.observe import observe
from bitsplit.network.product import has_plain_forward, reached_product
from bitsplit.network.running import outputs_of

Form = Literal["plain", "same"]


class SamePaddedConv2d(nn.Conv2d):
    """A convolution that first pads its input so that the output has ``ceil(size / stride)`` positions."""

    def forward(self, x: Tensor) -> Tensor:
        """x: Tensor[B, C, H, W]."""
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        total = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in sizes]
        ends = [end for n in reversed(total) for end in (n // 2, n - n // 2)]
        return F.conv2d(F.pad(x, ends), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@dataclass(frozen=True)
class _Finding:
    """What one computed layer showed: the weight it used and the form it can take, or None."""

    weight: Tensor
    form: Form | None


def bake_effective_weights(network: Network) -> Network:
    """Let every layer of ``network.computed`` store the weight that it computes; changes the model in place.

    The result is a new observation of the model.  A layer that no plain layer can stand for stays as it is,
    and stays listed as uncovered.  ``ModelError`` when the outputs of the network change.
    """
    if not network.computed:
        return network
    before, findings = _trial(network)
    for name, finding in findings.items():
        if finding.form is not None:
            module = make_plain(network.model.get_submodule(name), finding.form)
            module.weight.data = finding.weight
    after = outputs_of(network.model, network.batch, network.step)
    error = max(map(relative_error, after, before), default=0.0)
    if not error <= LARGEST_ERROR:
        raise ModelError(f"storing computed weights changes the network's output by {error:.1e}")
    return observe(network.model, network.batch, network.step)


def make_plain(module: nn.Module, form: Form) -> nn.Module:
    """Turn ``module`` into a layer that uses ``weight`` as it is; what the weight becomes is the caller's
    business.

    form: "plain" for the library's own class, "same" for ``SamePaddedConv2d``.
    """
    if parametrize.is_parametrized(module, "weight"):
        kind = type(module)  # removing edits the class, which copies of the module share
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    hooks = module._forward_pre_hooks.values()
    if any(isinstance(hook, WeightNorm) for hook in hooks):
        remove_weight_norm(module)
    elif any(isinstance(hook, SpectralNorm) for hook in hooks):
        remove_spectral_norm(module)
    module.__class__ = SamePaddedConv2d if form == "same" else kind_of(module).types[0]
    module.made_plain = form
    return module


def made_plain(model: nn.Module) -> dict[str, Form]:
    """The layers of ``model`` that ``make_plain`` has changed, with their forms."""
    return {
        name: module.made_plain for name, module in model.named_modules() if hasattr(module, "made_plain")
    }


def _trial(network: Network) -> tuple[list[Tensor], dict[str, _Finding]]:
    findings: dict[str, _Finding] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            findings[name] = _find(module, input_of(args, kwargs), output)

        return hook

    with ExitStack() as hooks:
        for name in network.computed:
            layer = network.model.get_submodule(name)
            hooks.callback(layer.register_forward_hook(watch(name), with_kwargs=True).remove)
        return outputs_of(network.model, network.batch, network.step), findings


def _find(module: nn.Module, x: Tensor, output: Tensor) -> _Finding:
    weight = module.weight if has_plain_forward(module) else reached_product(module, x).weight
    weight = weight.detach().clone()
    for form, stand_in in _stand_ins(module, weight):
        result = stand_in(x)
        if result.shape == output.shape and relative_error(result, output) <= LARGEST_ERROR:
            return _Finding(weight, form)
    return _Finding(weight, None)


def _stand_ins(module: nn.Module, weight: Tensor) -> Iterable[tuple[Form, nn.Module]]:
    """Layers of every form with the module's attributes."""
    kind = kind_of(module)
    for form, base in (("plain", kind.types[0]), ("same", SamePaddedConv2d)):
        if form == "plain" or kind.name == "Conv2d":
            stand_in = base.__new__(base)
            nn.Module.__init__(stand_in)
            for name, value in vars(module).items():
                if not name.startswith("_") or name == "_reversed_padding_repeated_twice":
                    stand_in.__dict__[name] = value
            stand_in.__dict__.pop("weight", None)
            stand_in.weight = nn.Parameter(weight, requires_grad=False)
            stand_in.bias = module.bias
            yield form, stand_in
