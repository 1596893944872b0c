"""``uav/downlink-v0`` as a PettingZoo environment: a view on a simulator block of size one."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import parallel_to_aec

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.observation import (
    observation_shapes,
    observation_size,
    observe,
    split_observation,
    state_shapes,
    write_state,
)
from marl_tr.envs.uav.render import TopView, scene
from marl_tr.envs.uav.simulator import Outcome, Simulator

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

    Observations are described in `marl_tr.envs.uav.observation`; actions are ``Box(-1, 1, (3,))``: speed,
    heading, transmit power. Each agent's info holds its ``rate_sum`` (b/s), ``n_users``, ``energy_J`` and
    ``power_W`` of the slot, ``collision`` and ``out``, and what all share: ``rates`` (b/s), ``sinr_db``,
    ``jain``, ``p5_rate``, ``std_rate``, ``sum_rate`` (b/s). At a reset infos are empty.

    Args:
        config: Settings.
        render_mode: ``"rgb_array"`` or None.

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
        self.action_spaces = {agent: spaces.Box(-1.0, 1.0, (3,), np.float32) for agent in self.possible_agents}
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
        return self._observations(), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Fly one slot; after `horizon` slots every agent is truncated, never terminated.

        Raises:
            RuntimeError: No episode is under way.
            ValueError: An agent has no action, or its action is not three finite numbers.
        """
        if not self.agents:
            raise RuntimeError("no episode is under way: call reset() first")
        agents = self.agents
        outcome = self._sim.step(self._stack(actions)[None])
        self._track.append(self._sim.position[0])
        over = bool(self._sim.slot[0] >= self.config.horizon)
        rewards = dict(zip(agents, outcome.reward[0].tolist(), strict=True))
        terminations = dict.fromkeys(agents, False)
        truncations = dict.fromkeys(agents, over)
        observations, infos = self._observations(), self._infos(outcome)
        if over:
            self.agents = []
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
        return self._view.draw(scene(self.config, self.snapshot(), np.stack(self._track), title=title))

    def close(self) -> None:
        """Release the figure."""
        self._view = None

    def _stack(self, actions: dict[str, Any]) -> Array:
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise ValueError(f"no action for {', '.join(missing)}")
        stacked = np.array([actions[agent] for agent in self.agents], np.float32)
        if stacked.shape != (len(self.agents), 3):
            raise ValueError(f"every action has three numbers; got shape {stacked.shape[1:]}")
        return stacked

    def _observations(self) -> dict[str, Any]:
        out = np.empty((1, len(self.agents), self._size), np.float32)
        observe(self._sim, out)
        if self.config.observation == "flat":
            return dict(zip(self.agents, out[0], strict=True))
        return {agent: split_observation(self.config, row) for agent, row in zip(self.agents, out[0], strict=True)}

    def _leaves(self) -> dict[str, Array]:
        leaves = {name: np.empty((1, *shape), np.float32) for name, shape in self._state_shapes.items()}
        write_state(self._sim, leaves)
        return leaves

    def _infos(self, outcome: Outcome) -> dict[str, dict[str, Any]]:
        sim, metrics = self._sim, outcome.metrics
        common = {
            "rates": sim.rates[0],
            "sinr_db": 10.0 * np.log10(sim.sinr[0]),
            "jain": float(metrics["jain"][0]),
            "p5_rate": 1e6 * float(metrics["p5_rate_mbps"][0]),
            "std_rate": 1e6 * float(metrics["std_rate_mbps"][0]),
            "sum_rate": 1e6 * float(metrics["throughput_mbps"][0]),
        }
        columns = zip(
            self.agents,
            sim.uav_rates[0].tolist(),
            sim.load[0].tolist(),
            outcome.energy_j[0].tolist(),
            sim.power[0].tolist(),
            outcome.collision[0].tolist(),
            outcome.out[0].tolist(),
            strict=True,
        )
        return {
            agent: {
                "rate_sum": rate,
                "n_users": users,
                "energy_J": energy,
                "power_W": power,
                "collision": collision,
                "out": out,
                **common,
            }
            for agent, rate, users, energy, power, collision, out in columns
        }
