"""The Bit-Split solver against the algorithm as released, on the same layers in one run.

    python benchmarks/split_solver.py [--threads 1] [--rounds 2] [--full] [--only 64x576] [--bits 4]

The baseline is the released iteration in NumPy with all channels vectorised: per round and plane it
multiplies the response residual by the inputs, per coordinate it takes one dot product per channel;
always 100 rounds. That needs minutes, so by default a few rounds are timed and scaled up, which the table
says; --full runs all of them. Before anything is timed, objectives are compared: after the same rounds
(equal up to float rounding), and at the operator's own fixed point, which must not be worse than the
baseline at its end. Operator times are the best of several. The last two columns: objective against the
bit planes' fixed point, of planes + polish and of the default method (six starts and a search).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsplit import BitSplit
from bitsplit.ops.gram import GramSums
from bitsplit.ops.levels import level_choices, levels_of
from bitsplit.ops.split import fwa, objective, ofwa, planes, polish
from bitsplit.quantizers import Grid

ROUNDS = 100  # of the released code
SIZES = {"64x576": (64, 576, 12000), "128x1152": (128, 1152, 12000), "512x4608": (512, 4608, 12000)}
SAME_OBJECTIVE = 3e-3  # float32: near-ties branch


def random_layer(rows: int, columns: int, patches: int) -> tuple[Tensor, Tensor]:
    """Weights [rows, columns] and inputs [patches, columns], rectified and correlated like feature maps."""
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(64, patches, generator=generator)
    mixing = torch.randn(columns, 64, generator=generator) / 8
    x = torch.relu(mixing @ hidden + 0.5 * torch.randn(columns, patches, generator=generator))
    return 0.05 * torch.randn(rows, columns, generator=generator), x.T.contiguous()


def second_moments(x: Tensor) -> Tensor:
    """X X^T of x [patches, columns] by the operator, [1, columns, columns]."""
    sums = GramSums.zeros(1, x.shape[1], 1)
    sums.add(x)
    return sums.G.to(x.dtype)


class Released:
    """The released response-space iteration; q = sum of 2^i planes[i], scale alpha, both per channel."""

    def __init__(self, codes: np.ndarray, x: np.ndarray, y: np.ndarray, bits: int) -> None:
        signs, sizes = np.sign(codes), np.abs(codes)
        self.planes = [(signs * (sizes >> i & 1)).astype(np.float32) for i in range(bits - 1)]
        self.x, self.y = x, y
        self.alpha = np.ones(len(codes), np.float32)

    def prepare(self) -> None:
        self.gram = self.x @ self.x.T

    def codes(self) -> np.ndarray:
        return sum(2**i * plane for i, plane in enumerate(self.planes))

    def round(self) -> None:
        """The scale, then every digit of every plane from the top."""
        response = self.codes() @ self.x
        self.alpha = (response * self.y).sum(1) / (response * response).sum(1)
        for i in reversed(range(len(self.planes))):
            plane, step = self.planes[i], self.alpha * 2**i
            others = self.codes() - 2**i * plane
            wanted = (self.y - self.alpha[:, None] * (others @ self.x)) @ self.x.T
            for n, row in enumerate(self.gram):
                without = plane @ row - plane[:, n] * row[n]
                slope = wanted[:, n] - step * without
                plane[:, n] = np.sign(slope) * (np.abs(slope) > step * row[n] / 2)


@dataclass
class Problem:
    """One layer as the operators see it; G and C in float32."""

    weight: Tensor
    x: Tensor
    bits: int

    def measure(self) -> None:
        self.gram = second_moments(self.x)
        self.cross = self.gram @ self.weight.T
        self.energy = (self.weight.double() @ self.x.T.double()).square().sum(1)[None]

    def start(self) -> tuple[Tensor, Tensor]:
        return fwa(self.weight[None], self.bits)

    def paper(self) -> tuple[Tensor, Tensor]:
        codes, scale = self.start()
        return planes(codes, scale, self.gram, self.cross, self.bits, ROUNDS)[:2]

    def polished(self) -> tuple[Tensor, Tensor]:
        codes, scale = self.paper()
        levels = levels_of(level_choices(self.bits), scale)
        return polish(codes, scale, self.gram, self.cross, levels, ROUNDS)[:2]

    def default(self) -> tuple[Tensor, Tensor]:
        """What the default method does with one layer: six starts, feedback, polish, tabu search."""
        return BitSplit().fit_rows(
            self.weight[None], self.gram, self.cross, Grid.symmetric(self.bits), seed=0
        )[:2]

    def objective(self, codes: Tensor, scale: Tensor) -> float:
        return objective(codes, scale, self.gram, self.cross, self.energy).sum().item()


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The best time of `repeats` calls."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def compare(name: str, bits: int, rounds: int) -> str:
    """One row of the table: checks first, then times."""
    weight, x = random_layer(*SIZES[name])
    problem = Problem(weight, x, bits)
    problem.measure()
    codes, scale = ofwa(weight[None], *problem.start(), bits)

    released = Released(codes[0].numpy(), x.T.contiguous().numpy(), (weight @ x.T).numpy(), bits)
    prepare_time = seconds(released.prepare, 1)
    round_time = seconds(lambda: [released.round() for _ in range(rounds)], 1) / rounds
    released_codes = torch.from_numpy(released.codes()).to(torch.int8)[None]
    baseline = problem.objective(released_codes, torch.from_numpy(released.alpha).double()[None])
    same_rounds = planes(codes, scale, problem.gram, problem.cross, bits, rounds)
    fitted = planes(released_codes, same_rounds.scale, problem.gram, problem.cross, bits, 0)
    ratio = problem.objective(*same_rounds[:2]) / problem.objective(*fitted[:2])
    assert abs(ratio - 1) < SAME_OBJECTIVE, (
        f"{name}: after {rounds} rounds objectives differ by {ratio - 1:.1e}"
    )
    paper, polished = problem.objective(*problem.paper()), problem.objective(*problem.polished())
    starts = problem.objective(*problem.default())
    assert polished <= paper <= baseline * (1 + SAME_OBJECTIVE) and starts <= polished

    repeats = 5 if len(weight) < 500 else 2
    total = prepare_time + ROUNDS * round_time
    solver, default = seconds(problem.polished, repeats), seconds(problem.default, repeats)
    measuring = seconds(lambda: problem.gram.copy_(second_moments(x)), repeats)
    times = [(solver, total / solver), (solver + measuring, total / (solver + measuring))]
    times.append((default + measuring, total / (default + measuring)))
    cells = "".join(f" | {t:8.4f} s {r:6.0f}x" for t, r in times)
    how = "measured" if rounds == ROUNDS else f"{rounds} rounds x {ROUNDS // rounds}"
    return (
        f"{name:>9} | {total:7.1f} s ({how}){cells} | {polished / paper - 1:+7.2%} {starts / paper - 1:+7.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the released algorithm to time")
    parser.add_argument("--full", action="store_true", help=f"run all {ROUNDS} of them")
    parser.add_argument("--only", choices=SIZES)
    arguments = parser.parse_args()
    if arguments.threads != torch.get_num_threads():  # NumPy reads its number of threads when it is loaded
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(arguments.threads))
        os.execvpe(sys.executable, [sys.executable, *sys.argv], environment)
    print(f"{arguments.bits} bits, {arguments.threads} thread(s); released: {ROUNDS} rounds")
    print("     size | released | solver (fwa, planes, polish) | with Gram | default with Gram | objective")
    rounds = ROUNDS if arguments.full else arguments.rounds
    for name in SIZES if arguments.only is None else [arguments.only]:
        print(compare(name, arguments.bits, rounds), flush=True)


if __name__ == "__main__":
    main()
