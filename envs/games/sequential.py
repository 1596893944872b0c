"""Games played in turns, with chance and hidden cards: their trees, exact values, best responses and gaps.

Pure functions of a compiled tree, in float64. A policy is a table for each player: the name of every information set,
and the probabilities of the actions there. The tree has every history, so this is for small games: Kuhn poker has 55
histories, Leduc poker (whose suits mean nothing) 1,936; gaps take 10 and 100 ms.

Source of the notions: Osborne and Rubinstein, A Course in Game Theory (1994), chapter 11; NashConv as in Lanctot et
al., "A unified game-theoretic approach to multiagent reinforcement learning", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marl_tr.envs.games.normal_form import Policy
from marl_tr.vector.contract import Leaves

__all__ = ["CHANCE", "OVER", "GameTree", "Node", "NotAPolicy", "SequentialGame", "State", "Table", "TooManyHistories"]

Array = NDArray[Any]
Table = Mapping[str, ArrayLike]
"""``{information set: [n]}``: the probabilities of all ``n`` actions, 0 where they are not allowed."""

CHANCE = -1
"""Whose turn it is where cards are dealt."""
OVER = -2
"""Nobody's turn: the game is over."""


class NotAPolicy(ValueError):
    """An information set has no probabilities, or what is no distribution over the actions that are allowed there."""


class TooManyHistories(ValueError):
    """A game is too large for its tree to be written out."""


class State(Protocol):
    """A history of a game; states do not change."""

    def turn(self) -> int:
        """Whose turn it is: a player's index, `CHANCE` or `OVER`."""
        ...

    def chances(self) -> Sequence[tuple[int, float]]:
        """What chance may do, and how probable each is."""
        ...

    def allowed(self) -> Sequence[int]:
        """What the player to move may do."""
        ...

    def after(self, action: int) -> State:
        """The state that an action, or an outcome of chance, leads to."""
        ...

    def returns(self) -> Sequence[float]:
        """What every player has gained once the game is over."""
        ...

    def known(self, player: int) -> str:
        """Name of what a player knows: its information set, where it is to move."""
        ...

    def seen(self, player: int) -> Array:
        """The same as numbers, ``[F]`` float32; different where `known` is."""
        ...


class SequentialGame(Protocol):
    """A game of perfect recall: no player forgets what it knew or did.

    Attributes:
        id: The registered name.
        agents: Names of the players.
        actions: Number of actions ``n``, the same for all players.
        features: Length ``F`` of what a player sees.
    """

    id: str
    agents: tuple[str, ...]
    actions: int
    features: int

    def start(self) -> State:
        """The empty history."""
        ...


@dataclass(frozen=True)
class Node:
    """A history.

    Attributes:
        turn: Whose turn it is: a player's index, `CHANCE` or `OVER`.
        place: Row of the information set among those of the player to move, else -1.
        children: ``(action or outcome, index of the node)``.
        chances: How probable the outcomes are, where chance is to move.
        returns: ``[A]``, what is gained if the game is over, else 0.
    """

    turn: int
    place: int
    children: tuple[tuple[int, int], ...]
    chances: tuple[float, ...]
    returns: Array


class GameTree:
    """Every history of a game.

    Args:
        game: Which one.
        most_nodes: Histories at most.

    Attributes:
        game: As given.
        nodes: All histories, parents before their children; the empty one is the first.
        known: For each player the names of its information sets, ``N_i``.
        seen: What it sees there, ``[N_i, F]`` float32.
        allowed: Which actions it has there, ``[N_i, n]`` int8.

    Raises:
        TooManyHistories: There are more than `most_nodes`.

    Example:
        >>> from marl_tr.envs.games.kuhn import KuhnPoker
        >>> tree = GameTree(KuhnPoker())
        >>> round(tree.nash_conv(tree.uniform()), 6)  # 11/12
        0.916667
    """

    def __init__(self, game: SequentialGame, *, most_nodes: int = 1_000_000) -> None:
        self.game = game
        players = range(len(game.agents))
        self.known: tuple[list[str], ...] = tuple([] for _ in players)
        self._rows: tuple[dict[str, int], ...] = tuple({} for _ in players)
        self._members: tuple[list[list[int]], ...] = tuple([] for _ in players)
        grown: list[Node | None] = []
        seen: list[list[Array]] = [[] for _ in players]
        allowed: list[list[Array]] = [[] for _ in players]

        def grow(state: State) -> int:
            index = len(grown)
            if index >= most_nodes:
                raise TooManyHistories(f"{game.id} has more than {most_nodes:,} histories; its tree is not written out")
            grown.append(None)
            turn, place = state.turn(), -1
            chances: tuple[float, ...] = ()
            options: tuple[int, ...] = ()
            if turn == CHANCE:
                options, chances = zip(*state.chances(), strict=True)
            elif turn != OVER:
                options = tuple(state.allowed())
                name = state.known(turn)
                place = self._rows[turn].setdefault(name, len(self.known[turn]))
                if place == len(self.known[turn]):
                    self.known[turn].append(name)
                    self._members[turn].append([])
                    seen[turn].append(state.seen(turn))
                    allowed[turn].append(np.isin(np.arange(game.actions), options).astype(np.int8))
                self._members[turn][place].append(index)
            children = tuple((option, grow(state.after(option))) for option in options)
            returns = np.asarray(state.returns() if turn == OVER else [0.0] * len(players), np.float64)
            grown[index] = Node(turn, place, children, chances, returns)
            return index

        grow(game.start())
        self.nodes: tuple[Node, ...] = tuple(node for node in grown if node is not None)
        self.seen = tuple(np.array(rows, np.float32).reshape(-1, game.features) for rows in seen)
        self.allowed = tuple(np.array(rows, np.int8).reshape(-1, game.actions) for rows in allowed)

    def uniform(self) -> tuple[dict[str, Array], ...]:
        """Every allowed action with the same probability."""
        return self._tables([allowed / allowed.sum(axis=1, keepdims=True) for allowed in self.allowed])

    def first_action(self) -> tuple[dict[str, Array], ...]:
        """Always the first action that is allowed."""
        return self._tables([np.eye(self.game.actions)[allowed.argmax(axis=1)] for allowed in self.allowed])

    def asked(self, policy: Policy) -> tuple[dict[str, Array], ...]:
        """What `policy` does everywhere, from ``{"observation": [N, F], "action_mask": [N, n]}`` of each agent."""
        found = []
        for agent, seen, allowed in zip(self.game.agents, self.seen, self.allowed, strict=True):
            mixed = np.asarray(policy(agent, {"observation": seen, "action_mask": allowed}), np.float64)
            if mixed.shape != allowed.shape:
                raise NotAPolicy(f"the policy of {agent!r} has shape {mixed.shape}, expected {allowed.shape}")
            found.append(mixed)
        return self._tables(found)

    def acting(self, policy: Sequence[Table]) -> Policy:
        """`policy` as a function of observations, such as `asked` takes.

        An observation that is none of the agent's information sets (one out of turn) gets uniform probabilities.

        Raises:
            NotAPolicy: As in `expected_values`.
        """
        rows = {
            agent: {seen.tobytes(): probabilities for seen, probabilities in zip(places, mixed, strict=True)}
            for agent, places, mixed in zip(self.game.agents, self.seen, self._read(policy), strict=True)
        }
        anything = np.full(self.game.actions, 1.0 / self.game.actions)

        def act(agent: str, observation: Leaves) -> Array:
            seen = np.ascontiguousarray(observation["observation"], np.float32)
            return np.stack([rows[agent].get(row.tobytes(), anything) for row in seen])

        return act

    def expected_values(self, policy: Sequence[Table]) -> Array:
        """What each player gains on average, ``[A]``.

        Raises:
            NotAPolicy: Some information set's probabilities are missing or are none.
        """
        mixed = self._read(policy)
        reach = np.array([r.prod() for r in self._reach(mixed)])
        total = np.zeros(len(self.game.agents))
        for node, weight in zip(self.nodes, reach, strict=True):
            total += weight * node.returns
        return total

    def best_response(self, policy: Sequence[Table], player: int) -> tuple[float, dict[str, int]]:
        """What a player gains on average by its best response to the others' `policy`, and that response.

        Returns:
            The value, and an action for every information set that can be reached if the player wants to.

        Raises:
            NotAPolicy: As in `expected_values`.
        """
        mixed, nodes = self._read(policy), self.nodes
        # How far chance and the others lead to a history, wherever the player itself wants to go.
        reach = np.delete(self._reach(mixed), player, axis=1).prod(axis=1)
        decided: dict[int, int] = {}
        values: dict[int, float] = {}

        def decide(place: int) -> int:
            if place not in decided:
                members = [nodes[index] for index in self._members[player][place]]
                worth = [
                    sum(
                        reach[index] * value(node.children[option][1])
                        for index, node in zip(self._members[player][place], members, strict=True)
                        if reach[index] > 0
                    )
                    for option in range(len(members[0].children))
                ]
                decided[place] = int(np.argmax(worth))
            return decided[place]

        def value(index: int) -> float:
            if index not in values:
                node = nodes[index]
                if node.turn == OVER:
                    values[index] = float(node.returns[player])
                elif node.turn == player:
                    values[index] = value(node.children[decide(node.place)][1])
                else:
                    weights = node.chances if node.turn == CHANCE else mixed[node.turn][node.place]
                    values[index] = sum(
                        float(weights[k if node.turn == CHANCE else option]) * value(child)
                        for k, (option, child) in enumerate(node.children)
                    )
            return values[index]

        best = value(0)
        response = {}
        for place, option in decided.items():
            response[self.known[player][place]] = nodes[self._members[player][place][0]].children[option][0]
        return best, response

    def gaps(self, policy: Sequence[Table]) -> Array:
        """What each player would gain by a best response, ``[A]``; at least 0 up to rounding.

        Raises:
            NotAPolicy: As in `expected_values`.
        """
        best = [self.best_response(policy, player)[0] for player in range(len(self.game.agents))]
        return np.array(best) - self.expected_values(policy)

    def nash_conv(self, policy: Sequence[Table]) -> float:
        """Sum of the `gaps`; 0 exactly at equilibria."""
        return float(self.gaps(policy).sum())

    def _tables(self, mixed: Sequence[Array]) -> tuple[dict[str, Array], ...]:
        return tuple(dict(zip(names, rows, strict=True)) for names, rows in zip(self.known, mixed, strict=True))

    def _read(self, policy: Sequence[Table]) -> list[Array]:
        """``[N_i, n]`` a player."""
        mixed = []
        for agent, names, allowed, table in zip(self.game.agents, self.known, self.allowed, policy, strict=True):
            rows = np.empty(allowed.shape)
            for row, name in enumerate(names):
                if name not in table:
                    raise NotAPolicy(f"{agent}: no probabilities for the information set {name!r}")
                found = np.asarray(table[name], np.float64)
                good = found.shape == allowed[row].shape and (found >= 0).all() and abs(found.sum() - 1) <= 1e-4
                if not good or found[allowed[row] == 0].any():
                    raise NotAPolicy(f"{agent}, {name!r}: {found} is no distribution over what {allowed[row]} allows")
                rows[row] = found / found.sum()
            mixed.append(rows)
        return mixed

    def _reach(self, mixed: Sequence[Array]) -> Array:
        """``[nodes, A + 1]``: the part of each player, and of chance (last), in the probability of each history."""
        reach = np.ones((len(self.nodes), len(mixed) + 1))
        for index, node in enumerate(self.nodes):
            for k, (option, child) in enumerate(node.children):
                reach[child] = reach[index]
                weight = node.chances[k] if node.turn == CHANCE else mixed[node.turn][node.place, option]
                reach[child, node.turn] *= weight
        return reach
