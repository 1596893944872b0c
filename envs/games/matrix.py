"""``games/matrix-v0``: any game in normal form, by its name or by its payoffs."""

from __future__ import annotations

from marl_tr.envs.games.config import MatrixConfig
from marl_tr.envs.games.game import native
from marl_tr.envs.games.normal_form import NormalForm, NormalFormVectorEnv

__all__ = ["make"]


def _game(config: MatrixConfig) -> NormalForm:
    return NormalForm(config.tensor, id="games/matrix-v0", group="player", rounds=config.rounds)


make = native(NormalFormVectorEnv, _game, MatrixConfig)
"""``games/matrix-v0``, native; see `marl_tr.envs.games.game.native`.

Example:
    >>> env = make(num_envs=8, game="stag_hunt")
    >>> env.reset(seed=1).groups["player"].observation["observation"].shape
    (8, 2, 1)
"""
