"""What came of learning a piece: compared with its start, and never behind it."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch

from bitsplit.methods.learning import Diverged, fitted, set_fitted, slower
from bitsplit.methods.tasks import Outcome, Piece, Samples
from bitsplit.ops.loss import reconstruction_loss
from bitsplit.ops.precision import computing_in

if TYPE_CHECKING:
    from bitsplit.methods.reconstruction import Reconstruction

COMPARED = 512  # rows, at most, on which what was learned is compared with the start
AT_ONCE = 64
COLLAPSE = 1.5  # so many times the error of the start is no result,
NEGLIGIBLE = 1e-3  # unless it is hardly any error at all


def learned(method: Reconstruction, piece: Piece, samples: Samples) -> Outcome:
    """Learn; once again, more carefully, when that collapses; never end behind the start."""
    before, start = piece_error(piece, samples), fitted(piece.layers)
    after, undecided = _attempt(method, piece, samples)
    remarks = []
    if not after <= max(COLLAPSE * before, NEGLIGIBLE):
        remarks.append(f"collapsed ({before:.2%} -> {after:.2%}), learned again at lower rates")
        warnings.warn(f"{piece.name}: {method.name} {remarks[0]}", stacklevel=2)
        set_fitted(piece.layers, start)
        after, undecided = _attempt(slower(method), piece, samples)
    if not after <= before:
        remarks.append("no gain, kept its start")
        set_fitted(piece.layers, start)
        after, undecided = piece_error(piece, samples), 0.0
    return Outcome(before, after, undecided, "; ".join(remarks))


def _attempt(method: Reconstruction, piece: Piece, samples: Samples) -> tuple[float, float]:
    """Learn; the piece's error then, infinite when learning diverged, and the share left undecided."""
    try:
        undecided = method.reconstruct(piece, samples)
    except Diverged:
        return math.inf, 0.0
    return piece_error(piece, samples), undecided


@torch.no_grad()
def piece_error(piece: Piece, samples: Samples) -> float:
    """Of the piece's output as it is, squared, over the energy of the target; up to ``COMPARED`` rows."""
    error = energy = torch.zeros((), dtype=torch.float64)
    rows = 0
    for sample in samples.all(AT_ONCE):
        with computing_in("fp32", piece.device):
            output = piece.run(sample.args, sample.kwargs)
        error = error + reconstruction_loss(output, sample.target, sample.weight).loss
        energy = energy + reconstruction_loss(torch.zeros_like(output), sample.target, sample.weight).loss
        rows += len(output)
        if rows >= COMPARED:
            break
    return float(error / energy) if energy > 0 else float(error)
