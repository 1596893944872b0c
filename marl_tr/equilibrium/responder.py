"""A learner that looks for a best response: the trainer with one agent, against others that stay."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.equilibrium.episodes import deviation_returns
from marl_tr.equilibrium.game import Game
from marl_tr.equilibrium.plays import PolicySubject, Subject
from marl_tr.equilibrium.settings import AuditSettings
from marl_tr.equilibrium.solo import SoloEnv
from marl_tr.errors import Interrupted, UserError
from marl_tr.policy import Policy
from marl_tr.rollout.team import Team
from marl_tr.scenario import load_scenario, resolved
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.build import build_players, device_of
from marl_tr.trainer.checkpoint import CheckpointError, load_checkpoint, refusing_misfits, save_checkpoint
from marl_tr.trainer.loop import Trainer
from marl_tr.trainer.seeding import derive_seed

__all__ = ["WAYS", "Responder", "Scored", "inherit", "learns_by_ratio", "responder_scenario"]

WAYS = ("mode", "sampled")
"""A responder is tried by its most likely actions, for a best response needs no randomness, and as it explores. Of
equals the first is taken."""

_SAVE_EVERY_S = 60.0

_PLAIN_AGENT: dict[str, Any] = {"kind": "gaussian", "hidden": [64, 64], "normalise_observation": True}
"""Of responders to agents without a likelihood, which a ratio could not be made of."""


@dataclass(frozen=True)
class Scored:
    """A responder after one level of the budget.

    Attributes:
        name: Such as ``"fresh_0"``.
        level: How often the budget had been doubled.
        step: Environment steps that it had learned from.
        returns: ``{way of acting: [n]}`` on the validation episodes.
    """

    name: str
    level: int
    step: int
    returns: Mapping[str, NDArray[np.float64]]


def responder_scenario(game: Game, agent: str, settings: AuditSettings, *, steps: int, seed: int) -> Scenario:
    """How a responder learns: the agent's own network, the clipped ratio (PPO) and a critic of its own.

    Args:
        game: Of the run.
        agent: Who deviates.
        settings: With overrides in `AuditSettings.learner`.
        steps: Environment steps at most.
        seed: Of the responder.

    Raises:
        ScenarioError: An override does not fit.
    """
    part = game.entry(agent)
    dumped = part.model_dump(mode="json") if learns_by_ratio(game, agent) else _PLAIN_AGENT
    own = {k: v for k, v in dumped.items() if k not in ("select", "sharing", "objective", "region", "optimizer")}
    run = resolved(game.scenario)
    batches = min(8, game.scenario.env.num_envs)
    data = {
        "name": "best_response",
        "seed": seed,
        "env": {**run["env"], "reward": "own"},
        "agents": [own],
        # Without an entropy bonus: it would keep the response from being one.
        "objective": {"kind": "clip", "entropy": 0.0},
        "region": {"kind": "measured"},
        "schedule": {"kind": "simultaneous"},
        "critic": {
            "kind": "mlp",
            "normalise_observation": True,
            "fit": {"kind": "adam", "learning_rate": 1e-3, "minibatches": batches},
        },
        "optimizer": {"learning_rate": 7e-4, "epochs": 5, "minibatches": batches},
        "advantage": {"gamma": game.scenario.advantage.gamma, "lam": game.scenario.advantage.lam},
        "trainer": {
            "total_steps": steps,
            "rollout_steps": game.scenario.trainer.rollout_steps,
            "threads": game.scenario.trainer.threads,
            "device": game.scenario.trainer.device,
        },
    }
    return load_scenario(data, settings.learner)


def learns_by_ratio(game: Game, agent: str) -> bool:
    """Whether a responder can have the agent's own network: its kind has a likelihood, so far as it declares it."""
    capabilities = getattr(game.entry(agent).config, "capabilities", None)
    return capabilities is None or "log_prob" in capabilities


def inherit(policy: Policy, team: Team, agent: str) -> None:
    """Put into a responder's policy what the agent's own policy holds: parameters and statistics of inputs.

    Args:
        policy: Of one learner.
        team: The agent's; where its agents share parameters, theirs are copied, and stay as they are.
        agent: Whose.

    Raises:
        UserError: The two have not the same network.
    """
    row = 0 if team.policy.rows.shared else team.agents.index(agent)
    theirs: Mapping[str, Tensor] = team.policy.module.state_dict()
    own: dict[str, Tensor] = {}
    for name, x in policy.module.state_dict().items():
        known = theirs.get(name)
        if known is not None and known.shape == x.shape:
            own[name] = known
        elif known is not None and known.shape[0] == team.policy.rows.learners and known.shape[1:] == x.shape[1:]:
            own[name] = known[row : row + 1]
        else:
            raise UserError(
                f"agent {agent!r}: no responder can begin at its policy, whose {name!r} is another network's"
            )
    policy.module.load_state_dict(own)


class Responder:
    """One best responder, with its files.

    Args:
        game: What is played.
        subject: Everybody else.
        agent: Who deviates.
        name: ``fresh_0``, ``warm_2``: those that begin with ``warm`` begin at the agent's own policy.
        settings: Of the audit.
        budget: Environment steps of level 0.
        folder: For its files.
        omniscient: Whether it sees the global state.
    """

    def __init__(
        self,
        game: Game,
        subject: Subject,
        agent: str,
        name: str,
        *,
        settings: AuditSettings,
        budget: int,
        folder: Path,
        omniscient: bool = False,
    ) -> None:
        self.game, self.subject, self.agent, self.name = game, subject, agent, name
        self._settings, self._budget, self._omniscient = settings, budget, omniscient
        self._folder = folder
        who = f"{subject.name}/{agent}/{name}{'/omniscient' if omniscient else ''}"
        self._seed = derive_seed(settings.seed, f"nash_gap/{who}")
        self._scenario = responder_scenario(
            game, agent, settings, steps=budget * 2**settings.doublings, seed=self._seed
        )

    def steps(self, level: int) -> int:
        """Environment steps up to the end of a level."""
        return self._budget << level

    def done(self, level: int) -> bool:
        """Whether the level has been trained and scored."""
        return self._snapshot(level).is_file()

    def scored(self, level: int) -> Scored:
        """What a level came to."""
        state = load_checkpoint(self._snapshot(level))
        returns = {way: np.asarray(x) for way, x in state["validation"].items()}
        return Scored(self.name, level, int(state["step"]), returns)

    def train(self, level: int, *, stop: Callable[[], bool], tick: Callable[[int], None]) -> None:
        """Train up to the end of a level and score it; what is already there is not done again.

        Args:
            level: All levels before it are done.
            stop: Asked after every iteration.
            tick: Told of the environment steps of every iteration.

        Raises:
            Interrupted: After saving.
        """
        if self.done(level):
            return
        trainer = Trainer(self._scenario, env=self._solo())
        trainer.audit = lambda line: None
        try:
            self._begin(trainer, level)
            saved = time.monotonic()
            while trainer.step < self.steps(level):
                before = trainer.step
                trainer.iterate()
                tick(trainer.step - before)
                due = stop() or time.monotonic() - saved > _SAVE_EVERY_S
                if due and self.subject.resumable:
                    self._save(trainer, level, begins=False)
                    saved = time.monotonic()
                if stop():
                    raise Interrupted("saved")
            self._save(trainer, level + 1, begins=True)
            team = trainer.players[0].team
            returns = {way: self._returns(team, way, "validation") for way in WAYS}
            save_checkpoint(
                self._snapshot(level),
                {"policy": team.policy.state_dict(), "validation": returns, "step": trainer.step},
            )
        finally:
            trainer.env.close()

    def test(self, level: int, way: str) -> NDArray[np.float64]:
        """What the agent is paid with this response on the test episodes, ``[n]``."""
        env = self._solo()
        try:
            (player,) = build_players(self._scenario, env.spec)
        finally:
            env.close()
        with refusing_misfits():
            player.team.policy.load_state_dict(load_checkpoint(self._snapshot(level))["policy"])
        return self._returns(player.team, way, "test")

    def seconds_a_step(self) -> float:
        """Wall time an environment step of training, by one iteration that is thrown away; no file is written."""
        trainer = Trainer(self._scenario, env=self._solo())
        trainer.audit = lambda line: None
        try:
            trainer.start()
            began = time.perf_counter()
            trainer.iterate()
            return (time.perf_counter() - began) / trainer.step
        finally:
            trainer.env.close()

    def _begin(self, trainer: Trainer, level: int) -> None:
        """Put `trainer` where this level begins, or where it was interrupted."""
        if not self._training.is_file():
            if level > 0:
                raise CheckpointError(f"{self._training} does not exist; delete {self._folder} to train it anew")
            trainer.start()
            if self.name.startswith("warm"):
                team = next(t for t in self.subject.teams if self.agent in t.agents)
                inherit(trainer.players[0].team.policy, team, self.agent)
            return
        state = load_checkpoint(self._training)
        trainer.load_state_dict(state["trainer"])
        # One level on where a process was killed before this level was scored.
        if state["level"] not in (level, level + 1):
            raise CheckpointError(f"{self._training} is not of level {level}; delete {self._folder} to train it anew")
        if state["level"] == level and state["begins"]:
            # Fresh episodes at every level, for references remember things that no file holds.
            trainer.collector.reset(derive_seed(self._seed, f"level/{level}"))

    def _save(self, trainer: Trainer, level: int, *, begins: bool) -> None:
        save_checkpoint(self._training, {"trainer": trainer.state_dict(), "level": level, "begins": begins})

    def _returns(self, team: Team, way: str, purpose: str) -> NDArray[np.float64]:
        settings = self._settings
        return deviation_returns(
            self.game.make,
            self.subject,
            PolicySubject(self.name, (team,), device_of(self._scenario), mode=way == "mode"),
            self.agent,
            episodes=settings.validation_episodes if purpose == "validation" else settings.episodes,
            seed=derive_seed(settings.seed, f"nash_gap/{purpose}"),
            payoff=self.game.payoff,
            omniscient=self._omniscient,
        )

    def _solo(self) -> SoloEnv:
        env = self.game.make(self._scenario.env.num_envs)
        others = self.subject.bind(env, seed=derive_seed(self._seed, "others"))
        return SoloEnv(env, self.agent, others, payoff=self.game.payoff, omniscient=self._omniscient)

    def _snapshot(self, level: int) -> Path:
        return self._folder / f"level_{level}.safetensors"

    @property
    def _training(self) -> Path:
        return self._folder / "training.safetensors"
