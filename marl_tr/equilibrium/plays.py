"""Ways to play a whole game that do not learn: a run's frozen policies, random play, an environment's references.

Their draws are keyed by (seed, team, decision): decision ``t`` of a play draws the same numbers whatever was drawn or
played before it. Two games with the same seeds that differ in one agent thus give all others the same numbers, which
is what paired episodes rest on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from marl_tr.errors import UserError
from marl_tr.rollout.lives import Starts
from marl_tr.rollout.team import Team, forget, play
from marl_tr.trainer.seeding import derive_seed
from marl_tr.vector.contract import Actions, Reference, Step, VectorEnv
from marl_tr.vector.sampling import random_actions

__all__ = ["Play", "PolicySubject", "RandomSubject", "ReferenceSubject", "Subject", "reference_names"]


class Play(Protocol):
    """One way of acting, bound to one batch of environments."""

    def begin(self) -> None:
        """Fresh episodes in every copy."""
        ...

    def act(self, step: Step, starts: Starts) -> Actions:
        """The actions of all agents; `starts` says whose life begins with this decision."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a later `load_state_dict` needs to go on exactly."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


class Subject(Protocol):
    """A joint policy that is audited, or that plays against one.

    Attributes:
        name: For tables and file names.
        resumable: Whether its plays' `state_dict` is all of them.
        teams: Its policies; empty where it has none.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def resumable(self) -> bool:
        """See the class."""
        ...

    @property
    def teams(self) -> Sequence[Team]:
        """See the class."""
        ...

    def bind(self, env: VectorEnv, *, seed: int) -> Play:
        """It, in `env`, with draws that follow from `seed`."""
        ...


@dataclass(frozen=True)
class PolicySubject:
    """The policies of a run.

    Attributes:
        name: Of the run.
        teams: Who acts.
        device: Where the policies live.
        mode: Take the laws' modes in place of samples.
    """

    name: str
    teams: Sequence[Team]
    device: torch.device
    mode: bool = False

    @property
    def resumable(self) -> bool:
        """True: a counter and memories."""
        return True

    def bind(self, env: VectorEnv, *, seed: int) -> Play:
        """See `Subject`."""
        return _Policies(self, env.spec.num_envs, seed)


@dataclass(frozen=True)
class RandomSubject:
    """Uniformly random actions among those that are allowed."""

    name: str = "random"
    teams: Sequence[Team] = ()

    @property
    def resumable(self) -> bool:
        """True: a counter."""
        return True

    def bind(self, env: VectorEnv, *, seed: int) -> Play:
        """See `Subject`."""
        return _Random(env, seed)


@dataclass(frozen=True)
class ReferenceSubject:
    """One of the environment's reference policies.

    Attributes:
        name: The reference's.
        teams: None.
    """

    name: str
    teams: Sequence[Team] = ()

    @property
    def resumable(self) -> bool:
        """False: what a reference remembers is its own; a training against it begins anew."""
        return False

    def bind(self, env: VectorEnv, *, seed: int) -> Play:
        """See `Subject`; the draws of a reference are its own, so `seed` moves nothing.

        Raises:
            UserError: The environment has no such reference.
        """
        found = [reference for reference in _references(env) if reference.name == self.name]
        if not found:
            known = ", ".join(repr(name) for name in reference_names(env)) or "none"
            raise UserError(f"environment {env.spec.id!r} has no reference policy {self.name!r}; it has {known}")
        return _Reference(found[0])


def reference_names(env: VectorEnv) -> tuple[str, ...]:
    """The environment's reference policies by name, but for random play, which every environment has."""
    return tuple(reference.name for reference in _references(env) if reference.name != "random")


def _references(env: Any) -> Sequence[Reference]:
    found: Sequence[Reference] = env.references() if hasattr(env, "references") else ()
    return found


class _Policies:
    def __init__(self, subject: PolicySubject, copies: int, seed: int) -> None:
        self._subject, self._copies, self._seed = subject, copies, seed
        self._generator = torch.Generator(device=subject.device)
        self.begin()

    def begin(self) -> None:
        self._decision = 0
        self._memories = {
            team.name: team.policy.initial_memory(
                self._copies * len(team.index) if team.policy.rows.shared else self._copies
            )
            for team in self._subject.teams
        }

    def act(self, step: Step, starts: Starts) -> Actions:
        actions: dict[str, dict[str, Any]] = {}
        for team in self._subject.teams:
            # Anew for every team: what one draws must not move what another gets.
            self._generator.manual_seed(derive_seed(self._seed, f"play/{team.name}/{self._decision}"))
            memories = {team.name: forget(team, self._memories[team.name], starts)}
            with torch.no_grad():
                own, _, following = play(
                    [team], step, memories, self._generator, mode=self._subject.mode, device=self._subject.device
                )
            self._memories[team.name] = following[team.name]
            _merge(actions, own, team)
        self._decision += 1
        return actions

    def state_dict(self) -> dict[str, Any]:
        return {"decision": self._decision, "memories": dict(self._memories)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._decision = int(state["decision"])
        device = self._subject.device
        self._memories = {name: None if m is None else m.to(device) for name, m in state["memories"].items()}


class _Random:
    def __init__(self, env: VectorEnv, seed: int) -> None:
        self._spec, self._seed, self._decision = env.spec, seed, 0

    def begin(self) -> None:
        self._decision = 0

    def act(self, step: Step, starts: Starts) -> Actions:
        drawn = random_actions(self._spec, np.random.default_rng([self._seed, self._decision]), step)
        self._decision += 1
        return drawn

    def state_dict(self) -> dict[str, Any]:
        return {"decision": self._decision}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._decision = int(state["decision"])


class _Reference:
    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def begin(self) -> None:
        """It sees by the steps that episodes begin."""

    def act(self, step: Step, starts: Starts) -> Actions:
        return self._reference.act(step)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing."""


def _merge(actions: dict[str, dict[str, Any]], own: Mapping[str, Mapping[str, Any]], team: Team) -> None:
    """Put a team's actions among those of the other teams of its group."""
    for group, leaves in own.items():
        known = actions.setdefault(group, {})
        for leaf, x in leaves.items():
            if leaf in known:
                known[leaf][:, list(team.index)] = x[:, list(team.index)]
            else:
                known[leaf] = x
