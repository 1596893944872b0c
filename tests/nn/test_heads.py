"""Heads against the spaces they bind."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Text

from marl_tr.nn import ProductHead, UnsupportedActionSpace, make_head

torch.set_num_threads(1)
SPACES = {
    "box": Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32)),
    "matrix": Box(-1, 3, (2, 3)),
    "unbounded": Box(-np.inf, np.inf, (2,)),
    "discrete": Discrete(4, start=-1),
    "multi": MultiDiscrete([3, 2]),
    "multi from one": MultiDiscrete([3, 2], start=[1, 1]),
    "integers": Box(0, 255, (3,), np.uint8),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "law"), [(n, k) for n in SPACES for k in ("gaussian", "beta") if (n, k) != ("unbounded", "beta")]
)
def test_every_sampled_action_is_in_the_space(name: str, law: str) -> None:
    space = SPACES[name]
    head = make_head(space, law)
    outputs = 3 * torch.randn(2, 5, 7, head.size, generator=generator())
    extra = torch.zeros(2, head.extra_size) if head.extra_size else None
    policy = head.law(outputs, extra)
    for raw in (policy.sample(generator(1)), policy.mode()):
        assert raw.shape == (2, 5, 7, *head.raw_shape)
        assert raw.dtype == head.raw_dtype
        assert policy.log_prob(raw).shape == (2, 5, 7)
        actions = head.env_action(raw)
        assert all(space.contains(_element(space, a)) for a in actions.flatten(0, 2).numpy())
        encoded = head.encode(actions)
        assert encoded.shape == (2, 5, 7, head.encoded_size)
        assert encoded.dtype == torch.float32
        if name != "unbounded":
            assert float(encoded.abs().max()) <= 1 + 1e-6


def _element(space: gymnasium.Space, action: np.ndarray) -> object:
    return int(action) if isinstance(space, Discrete) else action


def test_gaussian_units_map_the_unit_interval_onto_the_bounds_and_clip() -> None:
    head = make_head(SPACES["box"])
    raw = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [9.0, -9.0]])
    expected = torch.tensor([[-2.0, 0.0], [-0.5, 5.0], [1.0, 10.0], [1.0, 0.0]])
    torch.testing.assert_close(head.env_action(raw), expected)
    torch.testing.assert_close(head.encode(expected[:3]), raw[:3])


def test_unbounded_dimensions_pass_through_and_half_bounded_ones_are_clipped_at_their_bound() -> None:
    head = make_head(Box(np.array([-np.inf, 0.0], np.float32), np.array([np.inf, np.inf], np.float32)))
    out = head.env_action(torch.tensor([[123.0, -4.0]]))
    torch.testing.assert_close(out, torch.tensor([[123.0, 0.0]]))


def test_gaussian_log_std_is_a_row_of_each_learner() -> None:
    head = make_head(SPACES["box"])
    log_std = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    law = head.law(torch.zeros(2, 4, 5, 2), log_std)
    assert torch.equal(law.log_std[1, 3, 2], log_std[1])
    with pytest.raises(ValueError, match="log standard deviations"):
        head.law(torch.zeros(2, 4, 2))


def test_beta_starts_unimodal_for_any_output() -> None:
    law = make_head(SPACES["box"], "beta").law(torch.tensor([[-50.0, 0.0, 50.0, 1.0]]))
    assert bool((law.alpha >= 1).all())
    assert bool((law.beta >= 1).all())
    torch.testing.assert_close(law.alpha[0, 1], 1 + torch.log(torch.tensor(2.0)))


def test_discrete_encoding_is_one_hot_from_the_start_of_the_space() -> None:
    head = make_head(SPACES["discrete"])
    action = head.env_action(torch.tensor([0, 3]))
    assert action.tolist() == [-1, 2]
    assert head.encode(action).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    many = make_head(SPACES["multi from one"])
    assert many.encode(many.env_action(torch.tensor([2, 0]))).tolist() == [0, 0, 1, 1, 0]


def test_product_head_splits_outputs_masks_and_extra_parameters() -> None:
    head = ProductHead({"move": make_head(SPACES["box"]), "channel": make_head(SPACES["discrete"])})
    assert (head.size, head.extra_size, head.encoded_size) == (6, 2, 6)
    outputs = torch.randn(2, 5, 6, generator=generator())
    mask = torch.tensor([False, True, False, False])
    law = head.law(outputs, torch.full((2, 2), -1.0), {"channel": mask})
    raw = law.sample(generator())
    assert bool((raw["channel"] == 1).all())
    assert torch.equal(law.laws["move"].mean, outputs[..., :2])
    actions = head.env_action(raw)
    assert head.encode(actions).shape == (2, 5, 6)


def test_spaces_without_a_law_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedActionSpace, match="Text"):
        make_head(Text(3))
    with pytest.raises(UnsupportedActionSpace, match="finite bounds"):
        make_head(SPACES["unbounded"], "beta")
    with pytest.raises(ValueError, match="mask"):
        make_head(SPACES["box"], "beta").law(torch.zeros(1, 4), mask=torch.ones(1, 4, dtype=torch.bool))
