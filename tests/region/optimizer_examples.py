"""One learner's parameters of every kind, and gradients for them."""

from __future__ import annotations

import torch
from learning_examples import generator

from marl_tr.policy import Parameters
from marl_tr.region.optimizer import RowOptimizer


def stacked(rows: int = 1) -> Parameters:
    """First, hidden and last layer, an embedding, vectors."""
    noise = generator(1)
    shapes = {
        "first.weight": (5, 7),
        "first.bias": (7,),
        "token_embedding": (4, 6),
        "hidden.weight": (7, 6),
        "hidden.bias": (6,),
        "gate.weight": (6, 9),
        "column": (6, 1),
        "last.weight": (9, 3),
    }
    return {name: torch.randn(rows, *shape, generator=noise) for name, shape in shapes.items()}


HIDDEN = {"hidden.weight", "gate.weight"}


def gradients(parameters: Parameters, steps: int) -> list[Parameters]:
    noise = generator(2)
    return [{name: torch.randn(p.shape, generator=noise) for name, p in parameters.items()} for _ in range(steps)]


def run(row: RowOptimizer, steps: list[Parameters]) -> None:
    for step in steps:
        for name, p in row.parameters.items():
            p.grad = step[name].clone()
        row.step(1e9)
