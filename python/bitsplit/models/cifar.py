"""Residual networks for 32x32 images (He et al. 2015, section 4.2), small enough to quantize in seconds."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters.

    Where the shape changes, the shortcut drops every second pixel and pads the new channels with zeros on
    both sides ("option A" of the paper), so it holds no convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.new_channels = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Tensor[B, channels_in, H, W] -> Tensor[B, channels_out, H / stride, W / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """What is added to the convolutions' result: the input, thinned and padded to its shape."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        thinned = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(thinned, (0, 0, 0, 0, before, self.new_channels - before))


class CifarResNet(nn.Module):
    """Stem, three stages of blocks (the later two halve the resolution), average over the pixels, classifier.

    Args:
        blocks: number of blocks in each of the three stages; (3, 3, 3) is the paper's ResNet-20.
        widths: channels of the three stages.
        classes: number of outputs.
    """

    def __init__(
        self, blocks: Sequence[int] = (3, 3, 3), widths: Sequence[int] = (16, 32, 64), classes: int = 10
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks[0], widths[0], widths[0], stride=1)
        self.layer2 = _stage(blocks[1], widths[0], widths[1], stride=2)
        self.layer3 = _stage(blocks[2], widths[1], widths[2], stride=2)
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images Tensor[B, 3, 32, 32] -> class scores Tensor[B, classes]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def resnet20() -> CifarResNet:
    """The 20-layer network of the paper, 272,000 parameters, random weights."""
    return CifarResNet()


def _stage(count: int, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    first = Block(channels_in, channels_out, stride)
    return nn.Sequential(first, *(Block(channels_out, channels_out, 1) for _ in range(count - 1)))
