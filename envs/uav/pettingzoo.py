"""``uav/downlink-v0`` as a PettingZoo environment: a view on a simulator block of size one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import parallel_to_aec

from marl_tr.envs.uav.actions import action_spaces
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.energy import HOVER_POWER_W
from marl_tr.envs.uav.observation import (
    View,
    observation_shapes,
    observation_size,
    observe,
    split_observation,
    state_shapes,
    write_state,
)
from marl_tr.envs.uav.render import TopView, scene
from marl_tr.envs.uav.reward import objective_weights
from marl_tr.envs.uav.simulator import Outcome, Simulator
from marl_tr.vector.contract import Leaves

__all__ = ["DownlinkParallelEnv", "env", "parallel_env"]

Array = NDArray[Any]

_STATE = ("uavs", "users", "time")


def parallel_env(*, render_mode: str | None = None, **config: Any) -> DownlinkParallelEnv:
    """The environment; keyword arguments are the fields of `DownlinkConfig`.

    Example:
        >>> env = parallel_env(num_uavs=2, num_users=5)
        >>> observations, infos = env.reset(seed=1)
        >>> actions = {agent: env.action_space(agent).sample() for agent in env.agents}
        >>> observations, rewards, terminations, truncations, infos = env.step(actions)
    """
    return DownlinkParallelEnv(DownlinkConfig(**config), render_mode=render_mode)


def env(*, render_mode: str | None = None, **config: Any) -> AECEnv:
    """The same, one agent acting after the other (PettingZoo's AEC interface)."""
    return parallel_to_aec(parallel_env(render_mode=render_mode, **config))


class DownlinkParallelEnv(ParallelEnv):  # type: ignore[misc]
    """UAV base stations serving ground users.

    Observations are described in `marl_tr.envs.uav.observation`, actions in `marl_tr.envs.uav.actions`: a ``Box``, a
    ``MultiDiscrete``, or a ``Dict`` of ``move`` and ``alloc``. Each agent's info holds its ``rate_sum`` (b/s),
    ``n_users``, ``energy_J`` and ``power_W`` of the slot, ``collision`` and ``out``, its ``objectives`` by name
    (unweighted; times `objective_weights` they add up to its own reward, before `rho` mixes), and what all share:
    ``rates`` (b/s), ``sinr_db`` (-inf of users whom nobody serves), ``jain``, ``p5_rate``, ``std_rate``, ``sum_rate``
    (b/s). At a reset infos are empty. A UAV whose battery is empty is terminated and leaves `agents`.

    Args:
        config: Settings.
        render_mode: ``"rgb_array"`` or None.

    Attributes:
        objective_weights: ``{objective: weight}`` of the reward.

    Raises:
        ValueError: `render_mode` is not offered.
    """

    metadata = {  # noqa: RUF012 - PettingZoo's own attribute
        "name": "uav_downlink_v0",
        "render_modes": ["rgb_array"],
        "is_parallelizable": True,
        "render_fps": 10,
    }

    def __init__(self, config: DownlinkConfig | None = None, *, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is not offered; 'rgb_array' or None")
        self.config = config or DownlinkConfig()
        self.render_mode = render_mode
        self.possible_agents = list(self.config.agents)
        self.agents: list[str] = []
        self.objective_weights = objective_weights(self.config)
        self._row = {agent: row for row, agent in enumerate(self.possible_agents)}
        self._sim = Simulator(self.config, 1)
        self._size = observation_size(self.config)
        self._state_shapes = state_shapes(self.config)
        boxes: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(-np.inf, np.inf, shape, np.float32)
            for name, shape in observation_shapes(self.config).items()
        }
        seen: spaces.Space[Any] = spaces.Dict(boxes) if len(boxes) > 1 else boxes["observation"]
        self.observation_spaces = dict.fromkeys(self.possible_agents, seen)
        # One space an agent: a space that is sampled or seeded for one agent must not change another's draws.
        self.action_spaces = {agent: self._action_space() for agent in self.possible_agents}
        self._leaf_spaces = action_spaces(self.config)
        length = sum(int(np.prod(self._state_shapes[name])) for name in _STATE)
        self.state_space = spaces.Box(-np.inf, np.inf, (length,), np.float32)
        self._seeded = False
        self._track: list[Array] = []
        self._view: TopView | None = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The same object in every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The same object in every call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin an episode.

        Args:
            seed: Equal seeds give equal episodes. None: the next episode of the seed before, or of one from
                the operating system where there was none.
            options: Ignored: there are none.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        if seed is None and not self._seeded:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        if seed is None:
            self._sim.next_episode(np.zeros(1, np.intp))
        else:
            self._sim.reset(seed)
        self._seeded = True
        self.agents = list(self.possible_agents)
        self._track = [self._sim.position[0]]
        return self._observations(self._sim.alive), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Fly one slot; after `horizon` slots every agent that is left is truncated.

        Raises:
            RuntimeError: No episode is under way.
            ValueError: An agent has no action, or one outside its space.
        """
        if not self.agents:
            raise RuntimeError("no episode is under way: call reset() first")
        agents = self.agents
        outcome = self._sim.step(self._stack(actions))
        self._track.append(self._sim.position[0])
        over = bool(self._sim.over[0])
        observations, infos = self._observations(outcome.flew), self._infos(outcome)
        reward, terminated = outcome.reward[0].tolist(), outcome.terminated[0].tolist()
        rewards = {agent: reward[self._row[agent]] for agent in agents}
        terminations = {agent: terminated[self._row[agent]] for agent in agents}
        truncations = {agent: over and not ended for agent, ended in terminations.items()}
        self.agents = [] if over else [agent for agent in agents if not terminations[agent]]
        return observations, rewards, terminations, truncations, infos

    def state(self) -> Array:
        """All positions, velocities, powers, rates and the time, flat, for centralized training."""
        leaves = self._leaves()
        return np.concatenate([leaves[name].ravel() for name in _STATE])

    def snapshot(self) -> dict[str, Array]:
        """The global state by part (see `marl_tr.envs.uav.observation.state_shapes`), new arrays, for `EpisodeLog`."""
        return {name: leaf[0] for name, leaf in self._leaves().items()}

    def render(self) -> NDArray[np.uint8] | None:
        """The area from above, ``[H, W, 3]`` uint8; None without a render mode.

        Raises:
            RuntimeError: There was no reset yet.
        """
        if self.render_mode is None:
            return None
        if not self._track:
            raise RuntimeError("nothing to render: call reset() first")
        if self._view is None:
            self._view = TopView(self.config)
        title = f"slot {self._sim.slot[0]} of {self.config.horizon}"
        track = np.stack(self._track)[..., : self.config.coordinates]
        return self._view.draw(scene(self.config, self.snapshot(), track, title=title))

    def close(self) -> None:
        """Release the figure."""
        self._view = None

    def _action_space(self) -> spaces.Space[Any]:
        leaves = action_spaces(self.config)
        return leaves["action"] if len(leaves) == 1 else spaces.Dict(leaves)

    def _stack(self, actions: dict[str, Any]) -> Leaves:
        """``{leaf: [1, U, ...]}``; of UAVs on the ground zeros, which nobody reads."""
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise ValueError(f"no action for {', '.join(missing)}")
        if len(self._leaf_spaces) > 1:
            self._check_parts(actions)
        leaves: Leaves = {}
        whole = len(self.agents) == self.config.num_uavs
        for leaf, space in self._leaf_spaces.items():
            chosen = [actions[agent] if len(self._leaf_spaces) == 1 else actions[agent][leaf] for agent in self.agents]
            shapes = [np.shape(values) for values in chosen]
            if any(shape != space.shape for shape in shapes):
                agent, shape = next(pair for pair in zip(self.agents, shapes, strict=True) if pair[1] != space.shape)
                numbers = space.shape[0] if space.shape else 1
                raise ValueError(f"{leaf} of {agent} has {numbers} numbers; got shape {shape}")
            # Choices keep their own dtype: what is no whole number must not become one before it is checked.
            stacked = np.array(chosen, space.dtype if isinstance(space, spaces.Box) else None)[None]
            if not whole:
                flying, stacked = stacked, np.zeros((1, self.config.num_uavs, *stacked.shape[2:]), stacked.dtype)
                stacked[0, [self._row[agent] for agent in self.agents]] = flying[0]
            leaves[leaf] = stacked
        return leaves

    def _check_parts(self, actions: dict[str, Any]) -> None:
        for agent in self.agents:
            action = actions[agent]
            if not isinstance(action, Mapping) or any(leaf not in action for leaf in self._leaf_spaces):
                got = sorted(action) if isinstance(action, Mapping) else type(action).__name__
                parts = ", ".join(map(repr, self._leaf_spaces))
                raise ValueError(f"action of {agent} must be a mapping with {parts}; got {got}")

    def _observations(self, who: Array) -> dict[str, Any]:
        """Of the agents of the step that was, those that ended in it included."""
        out = np.empty((1, self.config.num_uavs, self._size), np.float32)
        observe(View(self._sim), out, who=who)
        rows = {agent: out[0, self._row[agent]] for agent in self.agents}
        if self.config.observation == "flat":
            return rows
        return {agent: split_observation(self.config, row) for agent, row in rows.items()}

    def _leaves(self) -> dict[str, Array]:
        leaves = {name: np.empty((1, *shape), np.float32) for name, shape in self._state_shapes.items()}
        write_state(View(self._sim), leaves)
        return leaves

    def _infos(self, outcome: Outcome) -> dict[str, dict[str, Any]]:
        sim, metrics = self._sim, outcome.measures
        with contextlib.nullcontext() if self.config.all_served else np.errstate(divide="ignore"):
            sinr_db = 10.0 * np.log10(sim.sinr[0])
        common = {
            "rates": sim.rates[0],
            "sinr_db": sinr_db,
            "jain": float(metrics["jain"][0]),
            "p5_rate": 1e6 * float(metrics["p5_rate_mbps"][0]),
            "std_rate": 1e6 * float(metrics["std_rate_mbps"][0]),
            "sum_rate": 1e6 * float(metrics["throughput_mbps"][0]),
        }
        columns: dict[str, Array] = {
            "rate_sum": sim.uav_rates,
            "n_users": sim.load,
            "energy_J": outcome.energy_j,
            "power_W": sim.power,
            "collision": outcome.collision,
            "out": outcome.out,
        }
        listed = {name: column[0].tolist() for name, column in columns.items()}
        parts = outcome.objectives
        fairness = -float(parts.deviation[0])
        utility, propulsion = parts.utility[0].tolist(), parts.propulsion_w[0].tolist()
        infos = {}
        for agent in self.agents:
            row = self._row[agent]
            mine = {name: column[row] for name, column in listed.items()}
            objectives = {
                "utility": utility[row],
                "fairness": fairness,
                "collision": -float(mine["collision"]),
                "out": -float(mine["out"]),
                "energy": -propulsion[row] / HOVER_POWER_W,
            }
            infos[agent] = {**mine, "objectives": objectives, **common}
        return infos
