"""Models for the tests of saving and loading, quantized by the simplest means."""

import torch
import torchvision
from timm.layers import ScaledStdConv2dSame
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models.resnet import BasicBlock, ResNet

from bitsplit.calibration.attaching import attach_quantizers
from bitsplit.network import bake_effective_weights, fold_norms, kind_of, observe
from bitsplit.planning import make_plan
from bitsplit.quantizers import quantized_layers, set_weight
from bitsplit.recipe import Recipe
from bitsplit.report import LayerResult, QuantizationReport


def quantize_by_rounding(model: nn.Module, images: Tensor, recipe: Recipe) -> nn.Module:
    """A quantized model by the simplest means: codes by nearest rounding, fixed activation scales."""
    network = bake_effective_weights(observe(model.eval(), images))
    fold_norms(network)
    plan = make_plan(network, recipe)
    attach_quantizers(model, plan)
    results = []
    for number, (name, layer) in enumerate(quantized_layers(model)):
        if hasattr(layer, "weight_quantizer"):
            matrix = kind_of(layer).matrix(layer, layer.weight.detach())
            high = layer.weight_quantizer.grid.high
            scale = matrix.abs().amax(2).clamp(min=1e-6) / high
            codes = torch.round(matrix / scale.unsqueeze(2)).clamp(-high, high)
            set_weight(layer, kind_of(layer).unmatrix(layer, codes), scale)
        if hasattr(layer, "input_quantizer") and not layer.input_quantizer.is_fitted:
            zero = 0 if layer.input_quantizer.grid.is_signed else number % 3
            layer.input_quantizer.set(torch.tensor([0.02 + 0.001 * number]), torch.tensor([zero]))
        facts = plan.layer(name).model_dump(include={"kind", "unit", "weights", "activations"})
        results.append(LayerResult(name=name, **facts, error=0.01 * number, seconds=0.5))
    data = {"images": len(images), "fingerprint": "abc"}
    model._bitsplit = QuantizationReport(plan=plan, layers=tuple(results), seconds=3, data=data)
    return model


class Odd(nn.Module):
    """One of everything: groups, transposed, linear, tied names, parameters, buffers, norms that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.alias = self.up
        self.lonely_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)
        self.gain = nn.Parameter(torch.rand(1) + 1)
        self.register_buffer("offset", torch.rand(5))
        self.register_buffer("counter", torch.tensor(3))
        self.register_buffer("scratch", torch.full((5,), 0.25), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.alias(self.grouped(x)) * self.gain
        x = self.lonely_norm(x + 1).mean((2, 3))
        return self.head(x) + self.offset + self.counter + self.scratch


class Computed(nn.Module):
    """Layers that compute their weights: parametrised, and standardised by the layer's own class."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = weight_norm(nn.Conv2d(3, 8, 3))
        self.standardised = ScaledStdConv2dSame(8, 8, 3, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.standardised(torch.relu(self.normed(x))))
        return self.head(x.mean((2, 3)))


def train_norms(model: nn.Module) -> nn.Module:
    """Norm statistics that are not the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


MODELS = {
    "odd": Odd,
    "computed": Computed,
    "resnet10": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=7),
    "linear": lambda: nn.Linear(3, 4),
}


def images_for(name: str) -> Tensor:
    return torch.randn(2, 3) if name == "linear" else torch.randn(2, 3, 32, 32)


def quantized(name: str, **fields: object) -> tuple[nn.Module, Tensor]:
    images = images_for(name)
    recipe = Recipe(**{"method": "bitsplit", "weights": 3, "activations": 5, **fields})
    return quantize_by_rounding(train_norms(MODELS[name]()), images, recipe), images
