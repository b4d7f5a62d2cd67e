"""The files the demo carries: the trained weights, images for calibration and images for the test."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from bitsplit.data.archive import JpegArchive
from bitsplit.data.preprocessing import Preprocessing
from bitsplit.models.cifar import CifarResNet

WEIGHTS = Path(__file__).with_name("weights.safetensors")
CALIBRATION = Path(__file__).with_name("calibration.npz")
TEST = Path(__file__).with_name("test.npz")
PREPROCESSING = Preprocessing(resize=None, crop=None)


def network() -> CifarResNet:
    """A 12-layer residual network for the ten classes of CIFAR-10, 168,000 parameters, random weights."""
    return CifarResNet(blocks=(1, 2, 2), widths=(16, 32, 64))


def trained_network() -> CifarResNet:
    """The network with the weights ``scripts/train_demo.py`` found, in eval mode."""
    model = network()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def save_weights(model: nn.Module) -> None:
    """Replaces the embedded weights by those of ``model``."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, WEIGHTS)


def load_calibration_images() -> JpegArchive:
    """500 training images, drawn by seed."""
    return JpegArchive(CALIBRATION, PREPROCESSING)


def load_test_images() -> JpegArchive:
    """2,000 test images, drawn by seed; training never saw them."""
    return JpegArchive(TEST, PREPROCESSING)
