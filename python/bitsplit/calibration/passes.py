"""Passes of the calibration data up to one layer: second moments, and mean errors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitsplit.calibration.replay import Stop
from bitsplit.errors import CalibrationError
from bitsplit.methods.statistics import Statistics
from bitsplit.methods.tasks import View
from bitsplit.network import Columns
from bitsplit.network.layers import input_of
from bitsplit.ops.gram import GramSums
from bitsplit.ops.threads import one_thread

if TYPE_CHECKING:
    from bitsplit.calibration.engine import Engine
    from bitsplit.calibration.task import EngineLayerTask


@contextmanager
def watching(
    layer: nn.Module, calls: int, seen: list[tuple[Tensor, Tensor | None]], outputs: bool
) -> Iterator[None]:
    """Append (input, output) of every call of ``layer`` to ``seen`` and end the forward at its last one.

    Without ``outputs`` the forward ends before the layer computes.
    """

    def kept(tensor: Tensor) -> Tensor:
        """What comes before the next call may change it in place."""
        return tensor.detach().clone() if len(seen) + 1 < calls else tensor.detach()

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not outputs:
            seen.append((kept(input_of(args, kwargs)), None))
            if len(seen) == calls:
                raise Stop

    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        seen.append((kept(input_of(args, kwargs)), kept(output)))
        if len(seen) == calls:
            raise Stop

    register = layer.register_forward_hook if outputs else layer.register_forward_pre_hook
    hook = register(after if outputs else before, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def visit(
    engine: Engine, task: EngineLayerTask, student: bool, teacher: bool, responses: bool = False
) -> Iterator[tuple[int, list, list]]:
    """For every batch: its number, the student's inputs of the layer, the teacher's inputs and outputs of it.

    Models that are not asked for are not run.  responses: the student's outputs as well.
    """
    inputs: list[tuple[Tensor, Tensor | None]] = []
    targets: list[tuple[Tensor, Tensor]] = []
    with ExitStack() as active:
        if student:
            active.enter_context(engine.student_replay.skipping())
            active.enter_context(watching(task.module, task.calls, inputs, outputs=responses))
        if teacher:
            active.enter_context(engine.teacher_replay.skipping())
            active.enter_context(watching(task.twin, task.calls, targets, outputs=student))
        for index, batch in engine.batches():
            if teacher:
                engine.teacher_replay.run(index, batch)
            if student:
                engine.student_replay.run(index, batch)
            if student and teacher and len(inputs) != len(targets):
                raise CalibrationError(
                    f"{task.name}: called {len(inputs)} times quantized but {len(targets)} times in float"
                )
            yield index, list(inputs), list(targets)
            inputs.clear()
            targets.clear()


def collect_statistics(
    engine: Engine,
    task: EngineLayerTask,
    quantized: bool,
    patches: int | None = None,
    parts: int = 1,
    view: View | None = None,
) -> tuple[Statistics, ...]:
    """Second moments of the layer's inputs and float responses (without bias) over all batches.

    quantized: inputs come from the quantized predecessors, responses from the float network; else both are
    float and the responses follow from the inputs.  patches: about how many to sample, of every call, where a
    row of the input is an image.  parts: so many statistics, of as many parts of the images.
    """
    seen = task.weight if view is None else task.weight[:, :, view.columns]
    groups, rows, width = seen.shape
    moments = [GramSums.zeros(groups, width, rows, seen.device) for _ in range(parts)]
    per_image = None if patches is None else max(1, round(patches / engine.images))
    for index, inputs, targets in visit(engine, task, student=quantized, teacher=True):
        for call, ((x, _), (_, y)) in enumerate(zip(inputs if quantized else targets, targets, strict=True)):
            if x.numel() == 0:
                continue
            seed = seed_of(engine.seed, task.name, index, call)
            x, y = (z if z is None else z.to(seen.dtype) for z in (x, y))  # the model may use half ones
            for part, (some_x, some_y) in enumerate(_cut_images(x, y, parts, task.kind.spatial)):
                columns = task.kind.columns(task.module, some_x, some_y)
                _add(
                    moments[(index + part) % parts],
                    columns if view is None else view.of(columns),
                    per_image,
                    seed,
                )
    if not all(_finite(sums) for sums in moments):
        raise CalibrationError(
            f"{task.name}: its inputs or responses hold NaN or Inf; it, or what comes before, overflows on "
            "these images"
        )
    if quantized:
        return tuple(_without_bias(_statistics(sums), task.bias) for sums in moments)
    return tuple(_from_weight(_statistics(sums), task.weight) for sums in moments)


def _add(sums: GramSums, columns: Columns, patches: int | None, seed: int) -> None:
    sums.add(
        columns.x, columns.y, kernel=columns.kernel, stride=columns.stride, padding=columns.padding,
        dilation=columns.dilation, positions=None if patches is None else columns.sample(patches, seed),
    )  # fmt: skip


def _statistics(sums: GramSums) -> Statistics:
    return Statistics(sums.G, sums.C, sums.sum_x, sums.sum_y, sums.sum_yy, sums.patches)


def _cut_images(x: Tensor, y: Tensor | None, parts: int, spatial: int) -> list[tuple[Tensor, Tensor | None]]:
    """A layer's input and output in ``parts`` along the images, or fewer where there are fewer images."""
    if x.dim() <= spatial + 1:  # one image, without a batch dimension
        return [(x, y)]
    inputs = x.chunk(parts)
    return list(zip(inputs, [None] * len(inputs) if y is None else y.chunk(parts), strict=True))


def _finite(sums: GramSums) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in (sums.G, sums.sum_yy, sums.sum_y))


@one_thread()
def _from_weight(sums: Statistics, weight: Tensor) -> Statistics:
    """Fitted on float inputs, Y = W X: everything about the responses follows from the Gram matrix."""
    w = weight.double()
    cross = sums.gram @ w.transpose(1, 2)
    sum_y = (w @ sums.sum_x.unsqueeze(2)).squeeze(2)
    sum_yy = (w * cross.transpose(1, 2)).sum(2)
    return Statistics(sums.gram, cross, sums.sum_x, sum_y, sum_yy, sums.count)


def _without_bias(sums: Statistics, bias: Tensor | None) -> Statistics:
    if bias is None:
        return sums
    b = bias.double().view_as(sums.sum_y)
    return Statistics(
        sums.gram,
        sums.cross - sums.sum_x.unsqueeze(2) * b.unsqueeze(1),
        sums.sum_x,
        sums.sum_y - sums.count * b,
        sums.sum_yy - 2 * b * sums.sum_y + sums.count * b * b,
        sums.count,
    )


def collect_mean_error(engine: Engine, task: EngineLayerTask) -> Tensor:
    """Float responses less the quantized ones, the mean over all positions, in float64."""
    axis, total, count = -1 - task.kind.spatial, 0.0, 0
    for _, inputs, targets in visit(engine, task, student=True, teacher=True, responses=True):
        for (_, got), (_, wanted) in zip(inputs, targets, strict=True):
            error = (wanted - got).movedim(axis, -1).reshape(-1, wanted.shape[axis])
            total = total + error.sum(0, dtype=torch.float64)
            count += len(error)
    if count == 0 or not bool(torch.isfinite(total).all()):
        raise CalibrationError(f"{task.name}: no calibration image, or NaN or Inf, reached this layer")
    return total / count


def seed_of(*parts: object) -> int:
    """A seed that depends on all ``parts`` and is the same in every process."""
    return zlib.crc32(repr(parts).encode())
