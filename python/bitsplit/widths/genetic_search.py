"""The search for widths of BRECQ (ICLR 2021)."""

from __future__ import annotations

import numpy as np

from bitsplit.widths.question import Answer, Question

POPULATION, GENERATIONS, MUTATION = 50, 100, 0.1  # the paper's
PARENTS = 10  # of a generation, the best so many
MOST_ATTEMPTS = 100  # to get a child within the budget


def genetic(question: Question, seed: int = 0) -> Answer:
    """A good choice, by crossing and mutating the best of a population."""
    random = np.random.default_rng(seed)
    layers, widths = question.losses.shape
    cheapest = question.costs.argmin(1)

    def within(make) -> np.ndarray:
        for _ in range(MOST_ATTEMPTS):
            child = make()
            if question.allows(question.cost(child)):
                return child
        return cheapest

    def anyone() -> np.ndarray:
        return random.integers(widths, size=layers)

    def mutated(parents: np.ndarray) -> np.ndarray:
        return np.where(random.random(layers) < MUTATION, anyone(), parents[random.integers(len(parents))])

    def crossed(parents: np.ndarray) -> np.ndarray:
        mother, father = parents[random.choice(len(parents), 2)]
        return np.where(random.random(layers) < 0.5, mother, father)

    people = np.array([within(anyone) for _ in range(POPULATION)])
    for _ in range(GENERATIONS):
        order = np.argsort([question.answer(person).loss for person in people], kind="stable")
        parents = people[order[:PARENTS]]
        half = (POPULATION - PARENTS) // 2
        children = [within(lambda: mutated(parents)) for _ in range(half)]  # noqa: B023
        children += [within(lambda: crossed(parents)) for _ in range(half)]  # noqa: B023
        people = np.concatenate([parents, children])
    return min((question.answer(person) for person in people), key=lambda answer: answer.loss)
