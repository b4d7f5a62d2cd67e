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
    q: np.ndarray,
    s: float,
    x: np.ndarray,
    y: np.ndarray,
    levels: tuple[int, int],
    rounds: int,
    ties: Ties | None = None,
    fit_scale: bool = True,
) -> tuple[np.ndarray, float, int]:
    """Response space: per coordinate the best of all levels, the scale fitted every round and at the end.

    Without ``fit_scale`` it stays.  ``levels`` here and below: the lowest and the highest one.
    """
    q, used = q.copy(), 0
    for _ in range(rounds):
        used += 1
        s = best_scale(q, x, y, s) if fit_scale else s
        before = q.copy()
        for n in range(len(q)):
            power = x[n] @ x[n]
            if power == 0:
                continue
            exact = q[n] + x[n] @ (y - s * q @ x) / (s * power)
            if ties and levels[0] < exact < levels[1]:
                ties.saw(exact)
            q[n] = np.clip(np.round(exact), *levels)
        if (q == before).all():
            break
    return q, best_scale(q, x, y, s) if fit_scale else s, used


MASK = 2**64 - 1


def random_bits(seed: int, row: int, draw: int) -> int:
    bits = (seed + 0x9E3779B97F4A7C15 * (row + 1) + 0xD1342543DE82EF95 * (draw + 1)) & MASK
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & MASK
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & MASK
    return bits ^ bits >> 31


def search(
    q: np.ndarray,
    gram: np.ndarray,
    cross: np.ndarray,
    levels: tuple[int, int],
    steps: int,
    seed: int,
    row: int,
    fit_scale: bool = True,
) -> tuple[np.ndarray, float]:
    """Tabu search: the codes that explain most of all codes met, and how much that is.

    Every step moves the free code whose move by one level gains most at the best scale so far (without
    ``fit_scale``: at the scale 1); it then rests.
    Every 20 steps three random codes of the best ones move instead of those at hand.
    """

    def possible(q: np.ndarray) -> bool:
        return not fit_scale or (q @ cross > 0 and q @ gram @ q > 0)

    def scale_of(q: np.ndarray) -> float:
        return (q @ cross) / (q @ gram @ q) if fit_scale else 1.0

    def explained(q: np.ndarray) -> float:
        return scale_of(q) * (2 * q @ cross - scale_of(q) * (q @ gram @ q))

    def within(level: np.ndarray) -> np.ndarray:
        return (levels[0] <= level) & (level <= levels[1])

    free_from, best = np.zeros(len(q), int), q.copy()
    alive = np.diag(gram) > 0
    if not possible(q):
        return q, 0
    for step in range(1, steps + 1):
        if step % 20 == 0:
            q = best.copy()
            for i in range(3):
                draw = random_bits(seed, row, 4 * step + 1 + i)
                n, direction = (draw >> 32) * len(q) >> 32, 1 if draw & 1 else -1
                if alive[n] and within(q[n] + direction):
                    q[n] += direction
                    free_from[n] = step + 6
            q = q if possible(q) else best.copy()
        s = scale_of(q)
        r = cross - s * (gram @ q)
        direction = np.where(r < 0, -1, 1)
        gain = 2 * np.abs(r) - s * np.diag(gram)
        record = gain > (explained(best) - explained(q)) * (1 + 1e-6) / s
        allowed = alive & within(q + direction) & ((free_from <= step) | record)
        if allowed.any():
            n = np.where(allowed, gain, -np.inf).argmax()
            q = q.copy()
            q[n] += direction[n]
            free_from[n] = step + 6 + ((random_bits(seed, row, 4 * step) >> 32) * 5 >> 32)
        q = q if possible(q) else best.copy()
        if explained(q) - explained(best) > 1e-12 * abs(explained(best)):
            best = q.copy()
    return best, explained(best)


def feedback(
    w: np.ndarray, s: float, gram: np.ndarray, levels: tuple[int, int], ties: Ties | None = None
) -> np.ndarray:
    """Round coordinate after coordinate; after each, the later weights move to their (unrounded) optimum.

    With e = w - s q fixed up to coordinate n, the rest of e that minimises e G e is -G_rr^-1 G_rd e_d, so
    what is rounded is the weight as the re-optimised rest has it. One linear system a coordinate.
    """
    size = len(w)
    q = np.zeros(size, int)
    wanted = w.copy()
    for n in range(size):
        exact = wanted[n] / s
        if ties and levels[0] < exact < levels[1]:
            ties.saw(exact)
        q[n] = np.clip(np.round(exact), *levels)
        done, rest = slice(0, n + 1), slice(n + 1, size)
        error = w[done] - s * q[done]
        wanted[rest] = w[rest] + np.linalg.solve(gram[rest, rest], gram[rest, done] @ error)
    return q


def objective(q: np.ndarray, s: float, x: np.ndarray, y: np.ndarray) -> float:
    return float(((y - s * (q @ x)) ** 2).sum())
