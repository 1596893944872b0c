"""The model that ships: what its file says, what it generates, and what the equalizer does to its gradients."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch
from gymnasium import spaces

from marl_tr.agents.sage.config import FlowConfig
from marl_tr.agents.sage.equalizer import gradient_norms
from marl_tr.agents.sage.policy import FlowPolicy, make
from marl_tr.envs.flow.rewards import Judge
from marl_tr.envs.flow.shapes import CONDITIONS, Condition, condition_tokens
from marl_tr.nn.velocity_files import velocity_file_info
from marl_tr.policy import PolicyBatch, Rows
from marl_tr.region.chain_gradients import chain_gradient_norms
from marl_tr.vector.contract import GroupSpec

torch.set_num_threads(1)

FILE = files("marl_tr.envs.flow") / "pretrained" / "moving_shapes.safetensors"


def build(sampler: str, *, steps: int = 10, shift: float = 3.0) -> FlowPolicy:
    group = GroupSpec(
        "segment",
        ("segment_0",),
        {"tokens": spaces.Box(-10, 10, (4, 32))},
        {"action": spaces.Box(-np.inf, np.inf, (1, 8, 16, 16))},
    )
    config = FlowConfig(
        sampler=sampler, steps=steps, shift=shift, network={"kind": "transformer", "pretrained": "moving_shapes"}
    )
    generator = torch.Generator().manual_seed(1)
    return make(config, group, rows=Rows(1, shared=True), generator=generator, device=torch.device("cpu"))


def test_its_file_is_small_and_says_where_it_comes_from() -> None:
    info = velocity_file_info(FILE)
    assert len(FILE.read_bytes()) < 5_000_000
    assert info["about"]["scenario"] == "pretrain_shapes"
    assert info["about"]["seed"] == 1
    assert len(info["sha256"]) == 64


def test_its_clips_are_legal_and_are_what_was_asked() -> None:
    """The aims that its pretraining had: accuracies above 0.95, distance below 0.12."""
    policy = build("sage")
    condition = Condition.from_index(torch.arange(2 * CONDITIONS) % CONDITIONS)
    with torch.no_grad():
        tokens = {"tokens": condition_tokens(condition)[None]}
        action = policy.act(tokens, None, torch.Generator().manual_seed(2), mode=True)
    scores = Judge()(action.env["action"][0], condition)
    assert scores.fit.distance.mean() < 0.12
    for accuracy in (scores.shape, scores.direction, scores.speed):
        assert accuracy.mean() > 0.95


@pytest.mark.parametrize(
    ("sampler", "steps", "shift", "above", "below"),
    [("sage", 10, 3.0, 100, 3), ("sage", 20, 5.0, 300, 4), ("flow", 20, 5.0, 200, 4), ("dance", 20, 5.0, 15, 4)],
)
def test_the_equalizer_levels_the_measured_gradients_of_the_steps(
    sampler: str, steps: int, shift: float, above: float, below: float
) -> None:
    """M6 of the reference table; what is left is the network's own, which the closed form does not know."""
    policy = build(sampler, steps=steps, shift=shift)
    decisions = 4
    condition = Condition.from_index(torch.arange(decisions) * 6)
    with torch.no_grad():
        tokens = condition_tokens(condition)[None]
        record = policy.act({"tokens": tokens}, None, torch.Generator().manual_seed(3)).record
    shape = (1, 1, decisions)
    batch = PolicyBatch(
        observation={"tokens": tokens[:, None]},
        record={leaf: x[:, None] for leaf, x in record.items()},
        memory=None,
        starts=torch.ones(shape, dtype=torch.bool),
        mask=torch.ones(shape, dtype=torch.bool),
    )
    parameters = {name: p.detach() for name, p in policy.module.named_parameters()}
    norms = chain_gradient_norms(policy, parameters, batch)
    raw, weighted = norms.raw, norms.weighted
    assert raw.max() / raw.min() > above
    assert weighted.max() / weighted.min() < below
    predicted = gradient_norms(policy.coefficients).log()
    assert np.corrcoef(raw.double().log().numpy(), predicted.numpy())[0, 1] > 0.97
