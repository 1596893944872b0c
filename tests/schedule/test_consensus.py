"""Consensus on a linear team game with known answers, and policies over joint actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from learning_examples import generator, make_region
from torch import Tensor, distributions, nn

from marl_tr.agents.gaussian.agent import make
from marl_tr.agents.gaussian.config import GaussianConfig
from marl_tr.agents.gaussian.joint import JointLaw, JointPolicy
from marl_tr.errors import UserError
from marl_tr.nn.distributions import Gaussian, ProductLaw
from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, Rows
from marl_tr.region.guard import Guard
from marl_tr.region.turn import Learners
from marl_tr.schedule.assignment import Assignment
from marl_tr.schedule.config import ConsensusConfig, SimultaneousConfig
from marl_tr.schedule.consensus import Consensus, edges_of
from marl_tr.schedule.simultaneous import Simultaneous
from marl_tr.vector.contract import EnvSpec, GroupSpec

torch.set_num_threads(1)

BOUND = 0.02
LENGTH = (2 * BOUND) ** 0.5  # of a step of the means of unit Gaussians within the bound


class JointMeans:
    """Each of ``L`` agents holds Gaussians of variance 1 over everybody's actions; their means are learned."""

    capabilities = frozenset({Capability.LOG_PROB, Capability.KL})
    direction = "kl_old_new"
    recurrent = False
    observes = False

    def __init__(self, agents: int) -> None:
        self.rows = Rows(agents=agents, shared=False)
        self.names = [f"{i}/action" for i in range(agents)]
        self.module = nn.Module()
        self.module.mean = nn.Parameter(torch.zeros(agents, agents, dtype=torch.float64))

    def _law(self, parameters: Parameters, batch: PolicyBatch) -> JointLaw:
        mean = parameters["mean"][:, None, None, :].expand(*batch.mask.shape, -1)
        laws = {
            name: Gaussian(part, torch.zeros_like(part))
            for name, part in zip(self.names, mean.split(1, -1), strict=True)
        }
        return JointLaw(ProductLaw(laws), [[name] for name in self.names], batch.record["acting"])

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        law = self._law(parameters, batch)
        return Evaluation(log_prob=law.components(batch.record).sum(-1, keepdim=True), entropy=law.entropy(), law=law)

    def divergence(self, anchor: JointLaw, law: JointLaw) -> Tensor:
        return anchor.kl(law).unsqueeze(-1)

    def law_parameters(self, parameters: Parameters, batch: PolicyBatch) -> tuple[Tensor, ...]:
        return self._law(parameters, batch).law.parameters()

    def fisher_product(self, law: JointLaw, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return law.fisher_product(tangents)

    @property
    def means(self) -> Tensor:
        return self.module.get_parameter("mean").detach().clone()


def linear_game(gradients: Tensor, *, region: Any = None, log: Any = lambda losses: None) -> Assignment:
    """``A_i = g_i . a`` on antithetic normal samples whose second moments are exactly 1 and 0: the gradient is
    ``g_i``."""
    n = len(gradients)
    half = torch.randn(300, n, generator=generator(1), dtype=torch.float64)
    half = half @ torch.linalg.inv(torch.linalg.cholesky(half.T @ half / 300)).T
    action = torch.cat([half, -half])  # [E, A]
    policy = JointMeans(n)
    everything = torch.ones(n, 1, len(action), dtype=torch.bool)
    record = {name: action[:, [k]].expand(n, 1, -1, 1) for k, name in enumerate(policy.names)}
    record["acting"] = torch.ones(n, 1, len(action), n, dtype=torch.bool)
    return Assignment(
        learners=Learners(policy, [str(i) for i in range(n)]),  # type: ignore[arg-type]
        batch=PolicyBatch({}, record, None, everything, everything),
        advantage=(action @ gradients.double().T).T.unsqueeze(1),
        normalise=False,
        objective=Surrogate(SurrogateConfig()),
        region=region or make_region("trpo", bound=BOUND, damping=0.0, subsample=1.0),
        log=log,
    )


def aligned(means: Tensor, direction: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(means, direction.double()[None], dim=-1)


GRADIENTS = torch.tensor([[1.0, -0.6, 0.2], [0.0, 1.0, 0.3], [0.8, 0.5, -1.0]])


def updated(rounds: int, **settings: Any) -> tuple[Tensor, dict[str, float], list[Mapping[str, Any]]]:
    logged: dict[str, float] = {}
    lines: list[Mapping[str, Any]] = []
    game = linear_game(GRADIENTS, log=logged.update)
    Consensus(ConsensusConfig(rounds=rounds, **settings)).update([game], Guard(lines.append), generator(), 0.0)
    return game.learners.policy.means, logged, lines  # type: ignore[attr-defined]


@pytest.mark.parametrize("settings", [{}, {"graph": "ring"}, {"edges": [("0", "1"), ("2", "1")]}])
def test_neighbours_come_to_agree_on_the_step_that_serves_the_sum_of_their_advantages(settings: dict[str, Any]) -> None:
    """Alone each steps along its own gradient; the constrained optimum is a step of all along the sum of them."""
    alone = linear_game(GRADIENTS)
    Simultaneous(SimultaneousConfig()).update([alone], Guard(lambda line: None), generator(), 0.0)
    apart = alone.learners.policy.means  # type: ignore[attr-defined]
    for mean, own in zip(apart, GRADIENTS, strict=True):
        assert float(aligned(mean[None], own)) > 1 - 1e-9
        # Shortened at most once: the model of the divergence is exact here, and rounding may go over the bound.
        assert float(mean.norm()) == pytest.approx(LENGTH, rel=0.21)
    together, total = GRADIENTS.sum(0), 0.0
    assert float(aligned(apart, together).min()) < 0.5
    means, logged, lines = updated(40, **settings)
    assert float(aligned(means, together).min()) > 1 - 1e-3
    assert logged["consensus/disagreement"] < 0.25 * logged["consensus/first_disagreement"]
    for mean, line in zip(means, lines, strict=True):
        # By the closed form of unit Gaussians.
        assert line["accepted"] == pytest.approx(float(mean.square().sum() / 2), rel=1e-6)
        assert line["accepted"] <= BOUND * (1 + 1e-9)
        total += line["surrogate_gain"]
    assert total > 0


def test_agreement_grows_with_the_rounds() -> None:
    found = [updated(rounds)[1]["consensus/disagreement"] for rounds in (1, 5, 30)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] / 4


def test_one_learner_has_nobody_to_agree_with() -> None:
    game = linear_game(torch.tensor([[2.0]]))
    (report,) = Consensus(ConsensusConfig()).update([game], Guard(lambda line: None), generator(), 0.0)
    assert report.outcome == "accepted"
    assert float(game.learners.policy.means[0, 0]) == pytest.approx(LENGTH, rel=0.21)  # type: ignore[attr-defined]


def test_what_the_guard_forbids_is_not_in_force() -> None:
    """A region that goes twice as far as the bound that the Guard keeps."""
    region = make_region("trpo", bound=BOUND, damping=0.0, subsample=1.0)
    game = linear_game(GRADIENTS, region=_Overshooting(region))
    lines: list[Mapping[str, Any]] = []
    Consensus(ConsensusConfig(rounds=3)).update([game], Guard(lines.append), generator(), 0.0)
    assert {line["outcome"] for line in lines} == {"interpolated"}
    assert all(0.5 * BOUND < line["accepted"] <= BOUND for line in lines)


class _Overshooting:
    """Doubles every step."""

    def __init__(self, region: Any) -> None:
        self._region = region
        self.guarantee, self.bound, self.requires = region.guarantee, region.bound, region.requires

    def propose(self, turn: Any) -> Any:
        candidate = self._region.propose(turn)
        old = turn.learners.parameters(turn.rows)
        doubled = {name: old[name] + 2 * (p - old[name]) for name, p in candidate.parameters.items()}
        return replace(candidate, parameters=doubled)


def test_graphs() -> None:
    names = ["a", "b", "c", "d"]
    assert len(edges_of(names, ConsensusConfig())) == 6
    assert edges_of(names, ConsensusConfig(graph="ring")) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert edges_of(names[:2], ConsensusConfig(graph="ring")) == [(0, 1)]
    assert edges_of(names[:1], ConsensusConfig(graph="ring")) == []
    star = ConsensusConfig(edges=[("b", "a"), ("a", "c"), ("d", "a"), ("a", "d")])
    assert edges_of(names, star) == [(0, 1), (0, 2), (0, 3)]
    for edges, what in (
        ([("a", "x")], "joins no two"),
        ([("a", "a")], "joins no two"),
        ([("a", "b")], "no path leads from a to c, d"),
    ):
        with pytest.raises(UserError, match=what):
            edges_of(names, ConsensusConfig(edges=edges))


# Policies over joint actions: two groups with unlike spaces.

FLYERS = GroupSpec(
    "flyers",
    ("f0", "f1"),
    {"o": spaces.Box(-1, 1, (3,))},
    {"move": spaces.Box(-1, 1, (2,)), "mode": spaces.Discrete(3)},
)
WALKER = GroupSpec("walkers", ("w",), {"o": spaces.Box(-1, 1, (4,))}, {"action": spaces.Discrete(4)})
SPEC = EnvSpec("pair", 5, (FLYERS, WALKER))


def joint_policy(group: GroupSpec, *, spec: EnvSpec = SPEC, shared: bool = False, **settings: Any) -> JointPolicy:
    config = GaussianConfig(scope="joint", **{"hidden": [8], "head_gain": 0.5, **settings})
    rows = Rows(agents=len(group.agents), shared=shared)
    policy = make(
        config, group, rows=rows, generator=generator(3), device=torch.device("cpu"), spec=spec, agents=group.agents
    )
    assert isinstance(policy, JointPolicy)
    return policy


def executed(rows: int, *, steps: int = 4, environments: int = 5) -> dict[str, Tensor]:
    noise = generator(7)
    shape = (steps, environments)
    record = {
        "f0/move": torch.randn(*shape, 2, generator=noise),
        "f0/mode": torch.randint(3, shape, generator=noise),
        "f1/move": torch.randn(*shape, 2, generator=noise),
        "f1/mode": torch.randint(3, shape, generator=noise),
        "w/action": torch.randint(4, shape, generator=noise),
        "acting": torch.rand(*shape, 3, generator=noise) < 0.7,
    }
    return {name: x.expand(rows, *x.shape) for name, x in record.items()}


@pytest.mark.parametrize(("group", "features"), [(FLYERS, 3), (WALKER, 4)])
def test_joint_likelihoods_divergences_and_fisher_products_are_those_of_everybody_who_acts(
    group: GroupSpec, features: int
) -> None:
    policy, rows = joint_policy(group), len(group.agents)
    record = executed(rows)
    mask = torch.ones(rows, 4, 5, dtype=torch.bool)
    observation = {"o": torch.randn(rows, 4, 5, features, generator=generator(9))}
    batch = PolicyBatch(observation, record, None, mask, mask)
    now = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    moved = {name: p + 0.1 * torch.randn(p.shape, generator=generator(11)) for name, p in now.items()}
    old, new = policy.evaluate(now, batch), policy.evaluate(moved, batch)

    def torch_laws(parameters: Parameters) -> list[list[distributions.Distribution]]:
        """Of f0, f1 and w, leaf by leaf."""
        p = iter(policy.law_parameters(parameters, batch))
        made: list[list[distributions.Distribution]] = []
        for box in (True, True, False):
            laws: list[distributions.Distribution] = []
            if box:
                laws.append(distributions.Independent(distributions.Normal(next(p), next(p).exp()), 1))
            made.append([*laws, distributions.Categorical(logits=next(p))])
        return made

    names = [["f0/move", "f0/mode"], ["f1/move", "f1/mode"], ["w/action"]]
    before, after = torch_laws(now), torch_laws(moved)
    acting = record["acting"]
    components = torch.stack(
        [
            torch.stack([law.log_prob(record[n]) for law, n in zip(ls, ns, strict=True)]).sum(0)
            for ls, ns in zip(before, names, strict=True)
        ],
        -1,
    )
    components = torch.where(acting, components, 0)
    torch.testing.assert_close(old.law.components(record), components, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(old.log_prob[..., 0], components.sum(-1), rtol=1e-5, atol=1e-5)
    kl = torch.stack(
        [
            torch.stack([distributions.kl_divergence(a, b) for a, b in zip(x, y, strict=True)]).sum(0)
            for x, y in zip(before, after, strict=True)
        ],
        -1,
    )
    torch.testing.assert_close(
        policy.divergence(old.law, new.law)[..., 0], torch.where(acting, kl, 0).sum(-1), rtol=1e-4, atol=1e-5
    )
    # The Fisher information is the Hessian of the divergence at zero.
    tangents = tuple(torch.randn(p.shape, generator=generator(13)) for p in policy.law_parameters(now, batch))
    product = policy.fisher_product(old.law, tangents)
    quadratic = sum(float((t * f).sum()) for t, f in zip(tangents, product, strict=True))
    law = old.law.map(lambda x: x.double() if x.is_floating_point() else x)
    eps = 1e-4
    shifted = law.law.with_parameters(
        tuple(p + eps * t.double() for p, t in zip(law.law.parameters(), tangents, strict=True))
    )
    near = law.kl(JointLaw(shifted, law.leaves, law.acting)).sum()
    assert quadratic == pytest.approx(float(2 * near / eps**2), rel=1e-3)


def test_each_agent_executes_and_records_its_own_component() -> None:
    policy = joint_policy(FLYERS)
    observation = {"o": torch.randn(2, 5, 3, generator=generator(9))}
    action = policy.act(observation, None, generator(4))
    whole = super(JointPolicy, policy).act(observation, None, generator(4))
    for leaf in ("move", "mode"):
        for row, agent in enumerate(FLYERS.agents):
            torch.testing.assert_close(action.record[leaf][row], whole.record[f"{agent}/{leaf}"][row])
            torch.testing.assert_close(action.env[leaf][row], whole.env[f"{agent}/{leaf}"][row])
    assert set(action.record) == set(action.env) == {"move", "mode"}
    assert action.env["move"].shape == (2, 5, 2)


def test_what_cannot_have_a_joint_law_is_refused() -> None:
    with pytest.raises(UserError, match="sharing: none"):
        joint_policy(FLYERS, shared=True)
    masked = replace(
        WALKER, observation={**WALKER.observation, "allowed": spaces.MultiBinary(4)}, masks={"action": "allowed"}
    )
    with pytest.raises(UserError, match="masks actions"):
        joint_policy(FLYERS, spec=EnvSpec("pair", 5, (FLYERS, masked)))
    assert np.prod(FLYERS.action["move"].shape) == 2
