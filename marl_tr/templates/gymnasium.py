"""A cart that should stay at a moving target: a Gymnasium ``Env``, with one agent."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

__all__ = ["NewEnvironment"]

Array = NDArray[np.float32]


class NewEnvironment(gymnasium.Env[Array, Array]):
    """A cart on a line.

    **Action**, ``Box(-1, 1, (1,))``: its acceleration.

    **Observation**, ``Box(-inf, inf, (3,))``: from the cart to its target, velocity, share of the time that is left.

    **Reward**: minus the distance to the target.

    Args:
        horizon: Steps of an episode.
        render_mode: ``"rgb_array"`` or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, horizon: int = 50, render_mode: str | None = None) -> None:
        self.horizon, self.render_mode = horizon, render_mode
        self.observation_space = Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode. Everything that `step` changes is set here, and every random number follows from `seed`."""
        super().reset(seed=seed)  # sets self.np_random
        self.t, self.place, self.velocity = 0, 0.0, 0.0
        self.target = float(self.np_random.uniform(-1.0, 1.0))
        return self._observation(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated, info."""
        self.velocity = 0.9 * self.velocity + 0.05 * float(action[0])
        self.place += self.velocity
        self.target += 0.02 * float(self.np_random.normal())
        self.t += 1
        # Nothing ends this task (termination); only the clock stops it (truncation).
        return self._observation(), -abs(self.target - self.place), False, self.t >= self.horizon, {}

    def render(self) -> NDArray[np.uint8]:
        """The cart (blue) and its target (orange), ``[32, 128, 3]``."""
        picture = np.full((32, 128, 3), 255, dtype=np.uint8)
        for place, colour in ((self.target, (230, 120, 30)), (self.place, (30, 70, 150))):
            x = int(np.clip(64 + 32 * place, 2, 125))
            picture[14:19, x - 2 : x + 3] = colour
        return picture

    def _observation(self) -> Array:
        return np.array([self.target - self.place, self.velocity, 1 - self.t / self.horizon], dtype=np.float32)
