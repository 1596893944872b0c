"""A game about the update: each learner keeps its policy or moves to a candidate, and an equilibrium decides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.policy import Capability, Parameters
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.turn import Candidate, Turn
from marl_tr.schedule.assignment import Assignment, Profile, Trials
from marl_tr.schedule.config import MetaGameConfig
from marl_tr.schedule.meta_nash import Equilibrium, solve_meta_game

__all__ = ["MetaGame", "ratio_payoffs"]


class MetaGame:
    """Candidates, their meta-game, its equilibrium, and a best response to it (MATRL: Wen et al., arXiv 2106.06828).

    1. Every learner proposes against the old others; the Guard says what of it is within its bound. Nothing is in
       force.
    2. The payoffs of the game in which each keeps its policy or moves to that candidate: of ratios and raw advantages
       (`ratio_payoffs`), or of fresh paired episodes. Of more learners than a table takes, random groups play apart,
       each as if the others kept.
    3. A Nash equilibrium of it (`marl_tr.schedule.meta_nash`): a probability of moving each.
    4. Parameters are interpolated by it (mixing laws would need policies that mix), and the Guard measures them anew.
    5. With `best_response` the mixed policies are looked ahead to, not committed: each learner takes one more step of
       its region from its *old* policy, its advantages weighed by the others' mixed ratios (an extra-gradient step).
       This is what keeps play from circling; the meta-game matters where steps are large. Without it the mixed
       policies are committed.

    At the equilibrium nobody gains, by these payoffs, from exchanging its own choice. No improvement of anybody's
    return follows from it.
    """

    def __init__(self, config: MetaGameConfig) -> None:
        self._config = config

    def update(
        self, assignments: Sequence[Assignment], guard: Guard, generator: torch.Generator, progress: float
    ) -> list[UpdateReport]:
        """Every learner proposes, and once more in answer to the equilibrium; reports in the learners' own order."""
        players = _candidates(assignments, guard, generator, progress)
        move = self._equilibrium(players, generator)
        mixed = [_mixed(player, float(share)) for player, share in zip(players, move, strict=True)]
        if not self._config.best_response:
            return [
                guard.accept(player.assignment.region, player.turn, candidate)[0]
                for player, candidate in zip(players, mixed, strict=True)
            ]
        ahead = [
            _log_ratio(player, guard.within(player.assignment.region, player.turn, candidate).parameters)
            for player, candidate in zip(players, mixed, strict=True)
        ]
        return [
            self._answer(player, _others(ahead, at), guard, generator, progress) for at, player in enumerate(players)
        ]

    def _equilibrium(self, players: Sequence[_Player], generator: torch.Generator) -> NDArray[np.float64]:
        """``[n]``, how far each moves."""
        move = np.ones(len(players))
        if self._config.payoffs == "none":
            return move
        order = list(range(len(players)))
        if len(order) > self._config.players:
            order = torch.randperm(len(order), generator=generator).tolist()
        for start in range(0, len(order), self._config.players):
            group = order[start : start + self._config.players]
            table = self._payoffs([players[at] for at in group], generator)
            found = solve_meta_game(table)
            move[group] = found.move
            _tell([players[at] for at in group], found)
        return move

    def _payoffs(self, players: Sequence[_Player], generator: torch.Generator) -> NDArray[np.float64]:
        trials = players[0].assignment.trials
        if self._config.payoffs == "rollouts":
            if trials is None:
                raise ValueError("payoffs 'rollouts' need somebody who plays them: assignments without trials")
            seed = int(torch.randint(2**62, (1,), generator=generator))
            return _played_payoffs(players, trials, episodes=self._config.episodes, seed=seed)
        advantages = [player.assignment.environment_advantage(player.row) for player in players]
        ratios = [_log_ratio(player, player.moved.parameters).exp() for player in players]
        product = torch.stack([_clipped(w, self._config.ratio_clip) for w in ratios]).prod(0)
        size = float(product.sum() ** 2 / (product.numel() * product.square().sum()))
        players[0].assignment.log({"meta/effective_sample_share": size})
        return ratio_payoffs(advantages, ratios, clip=self._config.ratio_clip)

    def _answer(
        self, player: _Player, log_factor: Tensor | None, guard: Guard, generator: torch.Generator, progress: float
    ) -> UpdateReport:
        """The best response of one learner to where the others are headed."""
        limit = self._config.factor_limit
        weight = None if log_factor is None else log_factor.exp().clamp(1 / limit, limit)
        assignment = player.assignment
        turn = assignment.turn(
            (player.row,),
            weight=None if weight is None else weight.to(assignment.advantage),
            generator=generator,
            progress=progress,
        )
        candidate = assignment.region.propose(turn)
        assignment.log(candidate.losses)
        return guard.accept(assignment.region, turn, candidate)[0]


def ratio_payoffs(advantages: Sequence[Tensor], ratios: Sequence[Tensor], *, clip: float) -> NDArray[np.float64]:
    """Payoffs of the meta-game from one rollout of the old policies: ``[n, 2, ..., 2]`` float64.

    ``M_i(b) = mean(A_i prod_{j: b_j = 1} w_j) - mean(A_i)``, each ratio clipped to ``[1 - clip, 1 + clip]``: what
    player ``i`` gains a step, to the first order in the visited states, where the players of ``b`` move.

    Args:
        advantages: Of each player, ``[T, E]``, raw: of a normalised one every such mean would be lost in its own noise.
        ratios: New to old likelihood of each one's recorded actions, ``[T, E]``, 1 where it did not act.
        clip: Of single ratios.

    Source: Wen et al., arXiv 2106.06828, equation of the meta-game's estimate; the mean of the product, where published
    code multiplies the mean advantage with the mean ratio.
    """
    n = len(advantages)
    gain = torch.stack([a.double() for a in advantages])
    moved = torch.stack([_clipped(w, clip) for w in ratios])
    table = np.zeros((n, 2**n))
    for column, profile in enumerate(itertools.product((0, 1), repeat=n)):
        chosen = [j for j in range(n) if profile[j]]
        change = moved[chosen].prod(0) - 1
        table[:, column] = (gain * change).flatten(1).mean(1).cpu().numpy()
    return table.reshape(n, *(2,) * n)


@dataclass(frozen=True)
class _Player:
    """One learner in the meta-game.

    Attributes:
        assignment: Its team's.
        row: Which learner of it.
        turn: Its turn on the old policies.
        moved: Its candidate, within its bounds.
    """

    assignment: Assignment
    row: int
    turn: Turn
    moved: Candidate

    @property
    def name(self) -> str:
        return self.turn.names[0]

    @property
    def old(self) -> Parameters:
        return self.assignment.learners.parameters([self.row])


def _candidates(
    assignments: Sequence[Assignment], guard: Guard, generator: torch.Generator, progress: float
) -> list[_Player]:
    players: list[_Player] = []
    for assignment in assignments:
        rows = tuple(range(len(assignment.learners.names)))
        turn = assignment.turn(rows, weight=None, generator=generator, progress=progress)
        proposed = assignment.region.propose(turn)
        assignment.log(proposed.losses)
        within = guard.within(assignment.region, turn, proposed)
        players += [_Player(assignment, row, turn.only(row), within.only(row)) for row in rows]
    return players


def _mixed(player: _Player, share: float) -> Candidate:
    """The candidate of a learner that moves with probability `share`: that far from its old parameters."""
    if share == 1 or player.moved.reasons[0]:
        return player.moved
    old = player.old
    return replace(
        player.moved,
        parameters={name: torch.lerp(p, player.moved.parameters[name], share) for name, p in old.items()},
        # They belong to a step that is not taken as it is.
        moments=[{}],
        expected_gain=[None],
        reasons=["" if share > 0 else "the meta-game's equilibrium keeps the old policy"],
    )


@torch.no_grad()
def _log_ratio(player: _Player, parameters: Parameters) -> Tensor:
    """New to old, an environment step: ``[T, E]`` float64; 0 for policies without a likelihood."""
    policy, turn = player.assignment.learners.policy, player.turn
    if Capability.LOG_PROB not in policy.capabilities:
        return player.assignment.environment_log_ratio(player.row, torch.zeros_like(turn.old.log_prob[0])).double()
    moved = policy.evaluate(parameters, turn.batch).log_prob - turn.old.log_prob
    return player.assignment.environment_log_ratio(player.row, moved[0]).double()


def _others(log_ratios: Sequence[Tensor], at: int) -> Tensor | None:
    """Sum over all but one; None where there is nobody else."""
    rest = [x for position, x in enumerate(log_ratios) if position != at]
    return torch.stack(rest).sum(0) if rest else None


def _clipped(ratio: Tensor, clip: float) -> Tensor:
    return ratio.double().clamp(max(0.0, 1 - clip), 1 + clip)


def _played_payoffs(players: Sequence[_Player], trials: Trials, *, episodes: int, seed: int) -> NDArray[np.float64]:
    """Mean returns of fresh episodes less those where everybody keeps, ``[n, 2, ..., 2]``."""
    n = len(players)
    choices = list(itertools.product((0, 1), repeat=n))
    profiles: list[Profile] = [
        {player.name: player.moved.parameters for player, moves in zip(players, profile, strict=True) if moves}
        for profile in choices
    ]
    played = trials.returns(profiles, episodes=episodes, seed=seed)
    table = np.zeros((n, 2**n))
    for column, returns in enumerate(played):
        table[:, column] = [np.mean(returns[player.name] - played[0][player.name]) for player in players]
    return table.reshape(n, *(2,) * n)


def _tell(players: Sequence[_Player], found: Equilibrium) -> None:
    log = players[0].assignment.log
    log({f"meta/move/{player.name}": float(share) for player, share in zip(players, found.move, strict=True)})
    log({"meta/mixed": float(found.kind == "mixed"), "meta/kept": float(found.kind == "kept")})
    if np.isfinite(found.regret):
        log({"meta/regret": found.regret, "meta/payoff": float(found.payoffs.sum())})
