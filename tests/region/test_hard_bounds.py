"""Every registered region that promises a hard bound, pushed as hard as it goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learning_examples import (
    LAWS,
    frozen,
    generator,
    make_learners,
    make_policy,
    make_region,
    make_turn,
    mean_over,
    play,
    torch_kl,
)

from marl_tr.region.guard import Guard
from marl_tr.registry import find, names
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

BOUND = 0.01
HARD = [name for name in names("regions") if make_region(name, bound=BOUND).guarantee == "hard"]


def test_the_regions_known_to_be_hard_are_among_those_tested() -> None:
    assert {"trpo", "measured"} <= set(HARD)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", HARD)
def test_no_adversarial_update_leaves_the_bound(name: str, law: str) -> None:
    """Fifty updates a law, two hundred a region: wild advantages, rates up to 0.1, parameters that drift on."""
    noise = generator(7)
    policy = make_policy(law, "gru" if law in ("beta", "categorical") else "mlp", agents=2, hidden=[6])
    learners = make_learners(policy)
    outcomes: list[str] = []
    for update in range(50):
        batch = play(policy, steps=3, environments=5, seed=update)
        turn = make_turn(policy, batch, learners=learners, advantage=_wild(batch.mask.shape, noise), seed=update)
        region = _region(name, float(torch.rand((), generator=noise)))
        before = frozen(policy)
        reports = Guard(lambda line: None).accept(region, turn, region.propose(turn))
        divergence = mean_over(torch_kl(law, policy, before, frozen(policy), batch), batch.mask)
        assert max(divergence) <= BOUND * (1 + 1e-6), f"update {update}"
        for report, measured in zip(reports, divergence, strict=True):
            assert report.accepted <= BOUND
            # In float32 a divergence is known to about the rounding of its law's parameters.
            assert report.accepted == pytest.approx(measured, rel=1e-3, abs=1e-7)
        outcomes += [report.outcome for report in reports]
    assert outcomes.count("rejected") < len(outcomes) / 2


def _wild(shape: torch.Size, noise: torch.Generator) -> torch.Tensor:
    scale = 10 ** (6 * torch.rand((), generator=noise) - 3)
    tails = torch.randn(shape, generator=noise) / torch.rand(shape, generator=noise).clamp_min(1e-2)
    return scale * tails


def _region(name: str, share: float) -> Any:
    config = find("regions", name).load_config()
    rate = 0.1 * 10 ** (-2 * share)
    optimizer = OptimizerSection(learning_rate=rate, epochs=3, minibatches=2, max_grad_norm=1e6)
    settings: dict[str, Any] = {"bound": BOUND}
    if "subsample" in getattr(config, "model_fields", {}):
        # Of fifteen decisions a share says nothing of the rest, and nearly every line search would fail.
        settings |= {"subsample": 1.0, "damping": 1e-3}
    return make_region(name, optimizer=optimizer, **settings)
