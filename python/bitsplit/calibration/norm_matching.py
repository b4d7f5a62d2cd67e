"""Noise that is changed until it gives every batch norm of a network the statistics that the norm keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from bitsplit.errors import BitsplitError, ModelError, first_line
from bitsplit.network.layers import input_of
from bitsplit.network.norms import has_statistics
from bitsplit.network.running import Step
from bitsplit.ops.precision import computing_in
from bitsplit.ops.threads import one_thread

SMALLEST = 1e-6  # of a spread that others are divided by


def matched(
    model: nn.Module, batches: list[Tensor], step: Step, iterations: int, rate: float, device: torch.device
) -> list[Tensor]:
    """Every batch after ``iterations`` of Adam, on the CPU.  ``model``, on ``device``, is not trained."""
    console = Console(stderr=True)
    steps = track(
        range(len(batches) * iterations), "distilling images", console=console,
        disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    ticks = iter(steps)
    plain = torch.autocast(device.type, enabled=False)
    with torch.enable_grad(), plain, one_thread(), computing_in("fp32", device):
        made = [_matched(model, batch.to(device), step, iterations, rate, ticks).cpu() for batch in batches]
    for _ in ticks:
        pass
    return made


def _matched(
    model: nn.Module, noise: Tensor, step: Step, iterations: int, rate: float, ticks: Iterator[int]
) -> Tensor:
    images = noise.clone().requires_grad_(True)
    adam = torch.optim.Adam([images], lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, iterations))
    with _watching(model) as distances:
        for _ in range(iterations):
            next(ticks)
            distances.clear()
            _run(model, step, images)
            (images.grad,) = torch.autograd.grad(_loss(distances), [images])
            adam.step()
            falling.step()
    return images.detach()


def _loss(distances: list[Tensor]) -> Tensor:
    if not distances:
        raise ModelError("no batch norm of the network takes part in its forward pass")
    loss = torch.stack(distances).mean()
    if not loss.requires_grad:
        raise ModelError(
            "images are made by gradients, and the forward pass has none; take torch.no_grad and detach out "
            "of it and of step="
        )
    return loss


def _run(model: nn.Module, step: Step, images: Tensor) -> None:
    try:
        step(model, images.clone())  # that may be changed in place
    except BitsplitError:
        raise
    except Exception as error:  # the model's own code may raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(
            f"distillation gives the network one tensor of images a call, here {by(images.shape)}, and the "
            f"forward failed: {what}; for images of another size pass bitsplit.Distilled(size=...), "
            "--input in the shell; a network that takes anything else needs a step= that makes it of that "
            "tensor, or real data"
        ) from error


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[Tensor]]:
    """Every call of a batch norm adds how far the statistics of its input are from those that it keeps."""
    norms = {module: name for name, module in model.named_modules() if has_statistics(module)}
    if not norms:
        raise ModelError(
            "the network has no batch norm with stored statistics to make images from; pass calibration "
            "images (a few hundred, without labels)"
        )
    distances: list[Tensor] = []

    def note(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = input_of(args, kwargs)
        if x.numel() < 2 * x.shape[1]:
            raise ModelError(
                f"batch norm {norms[norm]}: the spread of a channel needs at least two values, got an "
                f"input of {by(x.shape)}; pass bitsplit.Distilled(images=...) with 2 images or more"
            )
        distances.append(distance(x, norm.running_mean, norm.running_var))

    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield distances


def distance(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of the channels' means and spreads, relative to the spread that they should have, squared."""
    others = [axis for axis in range(x.dim()) if axis != 1]
    spread = variance.sqrt().clamp(min=SMALLEST)
    means = ((x.mean(others) - mean) / spread).square().mean()
    return means + (x.std(others) / spread - 1).square().mean()


def by(size: Sequence[int]) -> str:
    """As in "3 x 32 x 32"."""
    return " x ".join(map(str, size))
