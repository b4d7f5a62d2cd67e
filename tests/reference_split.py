"""Bit-Split and its neighbours from their definitions, one output channel at a time, in the simplest loops.

Everything works on a response matrix: `x` [N, K] holds one unfolded patch a column, `y` [K] is what the float
channel answers. Nothing here is fast; it is what the operators of the split family are compared with.
"""

import numpy as np


def limit_of(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def fwa(w: np.ndarray, bits: int) -> tuple[np.ndarray, float]:
    """Alternate q = clip(round(w / s)) and s = <w, q> / <q, q> until the integers stand."""
    limit = limit_of(bits)
    if not w.any():
        return np.zeros(len(w), int), 1.0
    s, q = np.abs(w).max() / limit, np.zeros(len(w), int)
    while True:
        nearest = np.clip(np.round(w / s), -limit, limit).astype(int)
        if (nearest == q).all():
            return q, s
        q, s = nearest, (w @ nearest) / (nearest @ nearest)


def split(q: np.ndarray, bits: int) -> np.ndarray:
    """Planes [bits - 1, N] of digits -1, 0, 1, lowest first; the sign goes into every plane."""
    return np.array([np.sign(q) * (np.abs(q) // 2**i % 2) for i in range(bits - 1)])


def stitch(planes: np.ndarray) -> np.ndarray:
    return sum(2**i * plane for i, plane in enumerate(planes))


def best_scale(q: np.ndarray, x: np.ndarray, y: np.ndarray, s: float) -> float:
    response = q @ x
    if response @ response <= 0 or response @ y <= 0:
        return s
    return (response @ y) / (response @ response)


def ofwa(w: np.ndarray, q: np.ndarray, s: float, bits: int, rounds: int) -> tuple[np.ndarray, float]:
    """Weight space: whole planes in turn, top first; 2|r| >= s 2^i gives a digit."""
    planes, identity = split(q, bits), np.eye(len(w))
    for _ in range(rounds):
        s = best_scale(stitch(planes), identity, w, s)
        for i in reversed(range(bits - 1)):
            others = stitch(planes) - 2**i * planes[i]
            r = w - s * others
            planes[i] = np.where(2 * np.abs(r) >= s * 2**i, np.sign(r), 0)
    q = stitch(planes)
    return q, best_scale(q, identity, w, s)


class Ties:
    """Remembers how near any decision came to a tie, relative to the distance between two levels."""

    def __init__(self) -> None:
        self.nearest = np.inf

    def saw(self, position: float) -> None:
        self.nearest = min(self.nearest, abs(abs(position) % 1 - 0.5))


def planes(
    q: np.ndarray, s: float, x: np.ndarray, y: np.ndarray, bits: int, rounds: int, ties: Ties | None = None
) -> tuple[np.ndarray, float, int]:
    """Response space: per plane from the top, per coordinate, the exact minimiser over -1, 0, 1."""
    digits, used = split(q, bits), 0
    for _ in range(rounds):
        used += 1
        s = best_scale(stitch(digits), x, y, s)
        before = digits.copy()
        for i in reversed(range(bits - 1)):
            for n in range(len(q)):
                power, a = x[n] @ x[n], s * 2.0**i
                if power == 0:
                    continue
                everything_else = s * stitch(digits) @ x - a * digits[i, n] * x[n]
                g = x[n] @ (y - everything_else)
                if ties:
                    ties.saw(min(1.0, abs(g) / (a * power)))
                digits[i, n] = np.sign(g) if abs(g) > a * power / 2 else 0
        if (digits == before).all():
            break
    q = stitch(digits)
    return q, best_scale(q, x, y, s), used


def polish(
    q: np.ndarray, s: float, x: np.ndarray, y: np.ndarray, bits: int, rounds: int, ties: Ties | None = None
) -> tuple[np.ndarray, float, int]:
    """Response space: per coordinate the best of all levels, the scale fitted every round and at the end."""
    q, limit, used = q.copy(), limit_of(bits), 0
    for _ in range(rounds):
        used += 1
        s = best_scale(q, x, y, s)
        before = q.copy()
        for n in range(len(q)):
            power = x[n] @ x[n]
            if power == 0:
                continue
            exact = q[n] + x[n] @ (y - s * q @ x) / (s * power)
            if ties and abs(exact) < limit:
                ties.saw(exact)
            q[n] = np.clip(np.round(exact), -limit, limit)
        if (q == before).all():
            break
    return q, best_scale(q, x, y, s), used


def feedback(w: np.ndarray, s: float, gram: np.ndarray, bits: int, ties: Ties | None = None) -> np.ndarray:
    """Round coordinate after coordinate; after each, the later weights move to their (unrounded) optimum.

    With e = w - s q fixed up to coordinate n, the rest of e that minimises e G e is -G_rr^-1 G_rd e_d, so
    what is rounded is the weight as the re-optimised rest has it. One linear system a coordinate.
    """
    limit, size = limit_of(bits), len(w)
    q = np.zeros(size, int)
    wanted = w.copy()
    for n in range(size):
        exact = wanted[n] / s
        if ties and abs(exact) < limit:
            ties.saw(exact)
        q[n] = np.clip(np.round(exact), -limit, limit)
        done, rest = slice(0, n + 1), slice(n + 1, size)
        error = w[done] - s * q[done]
        wanted[rest] = w[rest] + np.linalg.solve(gram[rest, rest], gram[rest, done] @ error)
    return q


def objective(q: np.ndarray, s: float, x: np.ndarray, y: np.ndarray) -> float:
    return float(((y - s * (q @ x)) ** 2).sum())
