"""From an environment's own spaces to stacked arrays and back.

One `GroupCodec` serves all agents of a group, because a group's spaces are equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gymnasium import spaces

from marl_tr.vector.actions import ActionCodec
from marl_tr.vector.contract import GroupSpec, Leaves
from marl_tr.vector.leaves import identical
from marl_tr.vector.masks import MASK, MaskCodec
from marl_tr.vector.observations import ObservationCodec

__all__ = ["GroupCodec", "group_agents"]


@dataclass(frozen=True)
class GroupCodec:
    """A group's name, its agents in order, and how their rows are written and read; `mask` where they have one.

    Agents are called as the environment does, which may be by numbers; what the trainer is told are strings.
    """

    name: str
    agents: tuple[str, ...]
    observation: ObservationCodec
    action: ActionCodec
    mask: MaskCodec | None = None

    @cached_property
    def spec(self) -> GroupSpec:
        """What the trainer is told."""
        masks = () if self.mask is None else self.mask.leaves
        observation: dict[str, spaces.Space[Any]] = {leaf.name: leaf.space for leaf in self.observation.leaves}
        return GroupSpec(
            name=self.name,
            agents=tuple(map(str, self.agents)),
            observation={**observation, **{leaf.name: leaf.space for leaf in masks}},
            action={leaf.name: leaf.space for leaf in self.action.leaves},
            masks={leaf.action: leaf.name for leaf in masks},
        )

    def write_mask(self, observation: Any, info: Any, rows: Leaves, agent: int) -> None:
        """Write the mask of an agent that is to move into row `agent` of `rows`, ``{leaf: [A, ...]}``.

        Raises:
            ValueError: It is missing or malformed; names the field.
        """
        if self.mask is None:
            return
        holder = observation if self.mask.source == "observation" else info
        if not isinstance(holder, Mapping) or MASK not in holder:
            raise ValueError(f"{self.mask.source} {MASK!r} is missing")
        self.mask.write(holder[MASK], rows, agent)


def group_agents(
    agents: Sequence[str],
    observation: Mapping[str, spaces.Space[Any]],
    action: Mapping[str, spaces.Space[Any]],
    *,
    env_id: str,
    infos: Mapping[str, Any] | None = None,
    movers: frozenset[str] | None = None,
) -> tuple[GroupCodec, ...]:
    """Stack agents with equal spaces, in the order in which `agents` first shows each pair of spaces.

    A group is called by the common part of its agents' names before the last ``_<number>`` (``adversary_0``,
    ``adversary_1`` -> ``adversary``); where its agents share none, or two groups share one, by
    ``group_<index>``.

    Args:
        agents: All names.
        observation: Their observation spaces.
        action: Their action spaces.
        env_id: The environment's name, for messages.
        infos: What a reset gave: agents whose infos hold an ``action_mask`` are masked from then on, unless their
            observations show one.
        movers: Where agents take turns, who is to move after that reset. The others' infos may not be filled in yet: a
            mask of any agent speaks for them.

    Raises:
        UnsupportedSpace: See `ObservationCodec.of` and `ActionCodec.of`.
    """
    stacks: list[list[str]] = []
    for agent in agents:
        for stack in stacks:
            if identical(observation[stack[0]], observation[agent]) and identical(action[stack[0]], action[agent]):
                stack.append(agent)
                break
        else:
            stacks.append([agent])
    given = {agent: info[MASK] for agent, info in (infos or {}).items() if isinstance(info, Mapping) and MASK in info}
    codecs = []
    for name, stack in zip(_group_names(stacks), stacks, strict=True):
        where = f"environment {env_id!r}, agent {stack[0]!r}"
        choice = ActionCodec.of(action[stack[0]], where=where)
        mask = shown = MaskCodec.in_observation(observation[stack[0]], choice, where=where)
        examples = [given[agent] for agent in stack if agent in given]
        if not examples and movers is not None and movers.isdisjoint(stack):
            examples = list(given.values())
        if mask is None and examples:
            mask = MaskCodec.in_info(examples[0], choice, where=where)
        seen = ObservationCodec.of(observation[stack[0]], where=where, mask=None if shown is None else MASK)
        codecs.append(GroupCodec(name, tuple(stack), seen, choice, mask))
    return tuple(codecs)


def _group_names(stacks: Sequence[Sequence[str]]) -> list[str]:
    prefixes = [{re.sub(r"_\d+$", "", str(agent)) for agent in stack} for stack in stacks]
    single = [next(iter(prefix)) or None if len(prefix) == 1 else None for prefix in prefixes]
    numbered = [f"group_{index}" for index in range(len(stacks))]
    names = [
        prefix if prefix is not None and single.count(prefix) == 1 else number
        for prefix, number in zip(single, numbered, strict=True)
    ]
    return names if len(set(names)) == len(names) else numbered
