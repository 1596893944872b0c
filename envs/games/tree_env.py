"""Small games in turns as a native batch: every copy is at a node of the compiled tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.games.normal_form import Policy
from marl_tr.envs.games.sequential import CHANCE, OVER, GameTree, State, Table
from marl_tr.philox import uniform
from marl_tr.vector.contract import Actions, EnvSpec, GroupSpec, GroupStep, Leaves, Reference, Step

__all__ = ["TreeVectorEnv"]

Array = NDArray[Any]

_GROUP = "player"
_REFERENCE = 0
"""Purpose of random numbers of references; the ``k``-th chance of a step has the purpose ``1 + k``."""


class TreeVectorEnv:
    """``E`` copies of a game in turns; implements `marl_tr.vector.contract.VectorEnv`.

    What agents see and how they are paid is as in `SequentialAECEnv`: of the actions only that of the agent to move
    counts, rewards come with the last move, which terminates everybody, and masks are zero out of turn.

    Args:
        tree: Of the game.
        num_envs: ``E``.
        env_offset: Index of the first copy in the random streams.
        policies: Tables to compare with, by name.

    Raises:
        ValueError: `num_envs` is below 1.
    """

    def __init__(
        self,
        tree: GameTree,
        *,
        num_envs: int,
        env_offset: int = 0,
        policies: Mapping[str, Sequence[Table]] | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        game = tree.game
        self.tree = tree
        self._policies = {name: self._at_nodes(tree.acting(tables)) for name, tables in (policies or {}).items()}
        self._copy = np.arange(env_offset, env_offset + num_envs, dtype=np.int64)
        self._batch = (num_envs, len(game.agents))
        self._compile()
        self.spec = EnvSpec(
            id=game.id,
            num_envs=num_envs,
            groups=(
                GroupSpec(
                    name=_GROUP,
                    agents=game.agents,
                    observation={
                        "observation": spaces.Box(-np.inf, np.inf, (game.features,), np.float32),
                        "action_mask": spaces.MultiBinary(game.actions),
                    },
                    action={"action": spaces.Discrete(game.actions)},
                    masks={"action": "action_mask"},
                ),
            ),
            own_state=True,
        )
        self._begin(seed=0)

    def reset(self, seed: int) -> Step:
        """Start ``E`` new games; equal seeds give equal cards for equal moves.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        self._begin(seed)
        return self._step(np.zeros(self._batch), np.zeros(self._batch[0], bool))

    def step(self, actions: Actions) -> Step:
        """The move of every copy's agent to move.

        Args:
            actions: ``{"player": {"action": [E, A]}}``.

        Raises:
            ValueError: The shape is wrong, or an action is not allowed now.
        """
        given = np.asarray(actions[_GROUP]["action"])
        if given.shape != self._batch:
            raise ValueError(f"actions of group {_GROUP!r} have shape {given.shape}, expected {self._batch}")
        movers = self._turn[self._node]
        chosen = np.take_along_axis(given, movers[:, None], axis=1)[:, 0]
        known = (chosen >= 0) & (chosen < self.tree.game.actions) & (chosen == np.floor(chosen))
        moved = np.where(known, self._child[self._node, np.where(known, chosen, 0).astype(np.int64)], -1)
        if (moved < 0).any():
            copy = int(np.flatnonzero(moved < 0)[0])
            agent, mask = self.tree.game.agents[movers[copy]], self._mask[self._node[copy], movers[copy]]
            raise ValueError(
                f"{self.spec.id}: action {chosen[copy]} of {agent} in environment {self._copy[copy]} is not among the "
                f"allowed {np.flatnonzero(mask).tolist()}"
            )
        self._moment += 1
        self._node = self._dealt(moved, first=0)
        done = self._turn[self._node] == OVER
        reward, final = self._returns[self._node], self._observation()
        # Chances of the hand that ended come before those of the next.
        self._node = self._dealt(np.where(done, 0, self._node), first=self._most_chances)
        step = self._step(reward, done)
        step.groups[_GROUP].final_observation = final if done.any() else None
        return step

    def exact_gaps(self, policy: Policy) -> dict[str, float]:
        """See `SequentialAECEnv.exact_gaps`."""
        return dict(zip(self.tree.game.agents, self.tree.gaps(self.tree.asked(policy)).tolist(), strict=True))

    def references(self) -> Sequence[Reference]:
        """The given policies; they know where this object's copies are."""

        def actor(table: Array) -> Callable[[Step], Actions]:
            def act(step: Step) -> Actions:
                drawn = uniform(self._seed, self._copy, purpose=_REFERENCE, step=self._moment, count=1)
                # As if all were to move; only who is counts. Of probabilities that sum to 1 up to rounding the last.
                chosen = (np.cumsum(table[self._node], axis=2) <= drawn[:, :, None]).sum(axis=2)
                last = table.shape[2] - 1 - (table[self._node][:, :, ::-1] > 0).argmax(axis=2)
                return {_GROUP: {"action": np.minimum(chosen, last).astype(np.int64)}}

            return act

        return tuple(Reference(name, actor(table)) for name, table in self._policies.items())

    def state_dict(self) -> dict[str, Any]:
        """Everything the following steps depend on."""
        return {"seed": self._seed, "moment": self._moment, "node": self._node.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: It was taken from another number of copies, or of a larger game.
        """
        node = np.array(state["node"], np.int64)
        if node.shape != self._copy.shape or (node >= len(self._turn)).any():
            raise ValueError(f"the state's nodes {node.shape} are not of {len(self._copy)} copies of {self.spec.id!r}")
        self._seed, self._moment, self._node = int(state["seed"]), int(state["moment"]), node

    def close(self) -> None:
        """Nothing is held."""

    _node: Array
    """``[E]``, where every copy is; chance is never to move there."""

    def _begin(self, seed: int) -> None:
        self._seed, self._moment = seed, 0
        self._node = self._dealt(np.zeros(self._batch[0], np.int64), first=0)

    def _compile(self) -> None:
        """Arrays by node: whose turn, children by action or chance, bounds of chances, returns, what is seen."""
        nodes, game = self.tree.nodes, self.tree.game
        width = max(game.actions, *(len(node.children) for node in nodes))
        self._turn = np.array([node.turn for node in nodes])
        self._returns = np.stack([node.returns for node in nodes])
        self._child = np.full((len(nodes), width), -1)
        self._bound = np.full((len(nodes), width), np.inf)
        self._mask = np.zeros((len(nodes), *self._batch[1:], game.actions), np.int8)
        for index, node in enumerate(nodes):
            for k, (option, child) in enumerate(node.children):
                self._child[index, k if node.turn == CHANCE else option] = child
                if node.turn >= 0:
                    self._mask[index, node.turn, option] = 1
            # The last outcome has no bound, whatever the probabilities sum to.
            self._bound[index, : max(len(node.chances) - 1, 0)] = np.cumsum(node.chances)[:-1]
        self._seen = _views(self.tree)
        chances = np.zeros(len(nodes), np.int64)  # on the way to a node
        for index, node in enumerate(nodes):
            for _, child in node.children:
                chances[child] = chances[index] + (node.turn == CHANCE)
        self._most_chances = int(chances.max())

    def _at_nodes(self, policy: Policy) -> Array:
        """``[nodes, A, n]``: what a policy does, as if everybody were to move."""
        seen = _views(self.tree)
        tables = [
            np.asarray(policy(agent, {"observation": seen[:, i]})) for i, agent in enumerate(self.tree.game.agents)
        ]
        return np.stack(tables, axis=1)

    def _dealt(self, node: Array, *, first: int) -> Array:
        """Where chance has had its turns; `first`: number of its first turn within the step."""
        node = node.copy()
        while (rows := np.flatnonzero(self._turn[node] == CHANCE)).size:
            drawn = uniform(self._seed, self._copy[rows], purpose=1 + first, step=self._moment, count=1)
            outcome = (self._bound[node[rows]] <= drawn).sum(axis=1)
            node[rows] = self._child[node[rows], outcome]
            first += 1
        return node

    def _observation(self) -> Leaves:
        return {"observation": self._seen[self._node], "action_mask": self._mask[self._node]}

    def _step(self, reward: Array, done: Array) -> Step:
        group = GroupStep(
            observation=self._observation(),
            reward=reward.astype(np.float32),
            terminated=np.repeat(done[:, None], self._batch[1], axis=1),
            truncated=np.zeros(self._batch, bool),
            alive=np.ones(self._batch, bool),
            acting=self._turn[self._node][:, None] == np.arange(self._batch[1]),
        )
        return Step(groups={_GROUP: group}, done=done)


def _views(tree: GameTree) -> Array:
    """What every player sees at every node, ``[nodes, A, F]`` float32; zeros where chance is to move."""
    players = range(len(tree.game.agents))
    views = np.zeros((len(tree.nodes), len(players), tree.game.features), np.float32)

    def look(state: State, index: int) -> None:
        node = tree.nodes[index]
        if node.turn != CHANCE:
            views[index] = [state.seen(player) for player in players]
        for option, child in node.children:
            look(state.after(option), child)

    look(tree.game.start(), 0)
    return views
