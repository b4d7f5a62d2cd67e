"""Widths for layers within a budget: the integer program against all choices there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitsplit.errors import RecipeError
from bitsplit.widths import Question, exact, genetic

TABLE = np.array([[3.0, 1.0, 0.0], [5.0, 2.5, 0.0]])
COSTS = np.array([[2.0, 3.0, 4.0], [2.0, 3.0, 4.0]])


def instance(random: np.random.Generator) -> Question:
    """Two to six layers of two to four widths, pairs of either sign, a budget between the extremes."""
    layers, widths = random.integers(2, 7), random.integers(2, 5)
    losses = np.sort(random.exponential(size=(layers, widths)))[:, ::-1] * 10.0 ** random.integers(-6, 4)
    costs = random.integers(1, 100, (layers, 1)) * np.arange(2, 2 + widths)
    least, most = costs[:, 0].sum(), costs[:, -1].sum()
    everyone = itertools.combinations(range(layers), 2)
    pairs = {pair: random.normal() * losses[:, 0].mean() for pair in everyone if random.random() < 0.3}
    return Question(losses.copy(), costs, least + (most - least) * random.random(), pairs)


def best_of_all(question: Question) -> float:
    layers, widths = question.losses.shape
    answers = map(question.answer, itertools.product(range(widths), repeat=layers))
    return min(answer.loss for answer in answers if answer.cost <= question.budget)


def test_a_thousand_instances():
    """The exact one is the best there is, and never behind the search."""
    random = np.random.default_rng(0)
    behind = 0
    for number in range(1000):
        question = instance(random)
        found, best = exact(question), best_of_all(question)
        size = np.abs(question.losses).max()
        assert found.cost <= question.budget
        assert abs(found.loss - best) <= 1e-9 * size
        assert found.bound <= best + 1e-6 * size
        if number % 50 == 0:
            searched = genetic(question, seed=number)
            assert searched.cost <= question.budget
            assert searched.loss >= found.loss - 1e-9 * size
            behind += searched.loss > found.loss + 1e-9 * size
    assert behind < 10  # of twenty: the search does search


@pytest.mark.parametrize(
    ("budget", "widths", "loss"),
    [(8, (2, 2), 0), (7, (1, 2), 1), (6, (0, 2), 3), (5, (0, 1), 5.5), (4, (0, 0), 8), (6.5, (0, 2), 3)],
)
def test_by_hand(budget, widths, loss):
    found = exact(Question(TABLE, COSTS, budget))
    assert (found.widths, found.loss, found.cost) == (widths, loss, COSTS[[0, 1], list(widths)].sum())
    assert found.bound == pytest.approx(loss, abs=1e-6)


def test_pairs_change_the_choice():
    """At budget 4 nothing else is left; at 5 a pair that gains makes up for more than the better width."""
    assert exact(Question(TABLE, COSTS, 4, {(0, 1): -6.0})).loss == 2
    assert exact(Question(TABLE, COSTS, 5, {(0, 1): -6.0})).widths == (0, 0)
    assert exact(Question(TABLE, COSTS, 5, {(0, 1): 6.0})).widths == (0, 1)


def test_the_seed_decides_the_search():
    question = instance(np.random.default_rng(5))
    assert genetic(question, seed=3) == genetic(question, seed=3)


def test_a_budget_below_everything():
    with pytest.raises(RecipeError, match="budget of 3 cannot be met: the network takes 4 at least"):
        Question(TABLE, COSTS, 3)


@pytest.mark.parametrize(
    ("losses", "costs"),
    [
        (TABLE, COSTS[:1]),
        (TABLE[0], COSTS[0]),
        (TABLE[:0], COSTS[:0]),
        (TABLE * np.nan, COSTS),
        (TABLE, -COSTS),
    ],
)
def test_tables_that_are_none(losses, costs):
    with pytest.raises(ValueError, match="losses"):
        Question(losses, costs, 10)


@pytest.mark.parametrize("seed", range(40))
def test_costs_of_unlike_size(seed):
    """What the solver may be off by is more than what tells some choices apart."""
    random = np.random.default_rng(seed)
    costs = random.integers(1, 20, (4, 3)) * 10.0 ** random.integers(0, 8, (4, 1))
    if seed % 2:
        costs = 1e7 + random.integers(0, 10, (4, 3)).astype(float)
    sums = [costs[range(4), widths].sum() for widths in itertools.product(range(3), repeat=4)]
    question = Question(random.integers(0, 6, (4, 3)).astype(float), costs, random.choice(sums) + 7, fixed=7)
    found = exact(question)
    assert question.allows(found.cost)
    assert found.loss == best_of_all(question) == pytest.approx(found.bound, abs=1e-5)


def test_the_solver_prints_nothing(capfd):
    random = np.random.default_rng(1)
    losses = np.sort(random.exponential(size=(60, 5)))[:, ::-1]
    costs = random.integers(1000, 2000000, (60, 1)) * np.array([2, 3, 4, 6, 8])
    pairs = {(i, i + 1): random.normal() for i in range(59)}
    for factor in (1.25, 1.5, 2.0):
        exact(Question(losses, costs, factor * costs[:, 0].sum(), pairs))
    assert capfd.readouterr() == ("", "")


def test_one_layer_one_width():
    assert exact(Question(np.array([[0.0]]), np.array([[0.0]]), 0)).widths == (0,)
