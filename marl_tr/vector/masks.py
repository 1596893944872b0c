"""Which choices an environment allows, from its observations or infos to stacked arrays.

Two conventions are read. PettingZoo's board games show ``Dict{observation, action_mask}``; Gymnasium's tabular tasks
put ``action_mask`` into ``info``. Both give what ``space.sample(mask)`` of `gymnasium` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.actions import LONE, ActionCodec, ActionLeaf
from marl_tr.vector.contract import Leaves
from marl_tr.vector.errors import UnsupportedSpace
from marl_tr.vector.leaves import Path, at, part_of
from marl_tr.vector.sampling import choices

__all__ = ["MASK", "MaskCodec", "MaskLeaf"]

MASK = "action_mask"
"""The key of a mask, and the name of its leaf."""


@dataclass(frozen=True)
class MaskLeaf:
    """The mask of one leaf of an action.

    Attributes:
        name: ``"action_mask"``, or ``"action_mask/<leaf>"`` of an action with parts.
        action: The action leaf.
        path: Where it is in the mask.
        sizes: Choices of each entry of the action leaf.
        binary: The leaf is a `MultiBinary`, of which Gymnasium's masks say 0, 1 or 2 (either) for each entry.
    """

    name: str
    action: str
    path: Path
    sizes: tuple[int, ...]
    binary: bool

    @property
    def space(self) -> spaces.MultiBinary:
        """The stacked space, int8."""
        return spaces.MultiBinary(sum(self.sizes))

    def bits(self, value: Any) -> NDArray[np.int8]:
        """`value` as ``[n]`` of 0 and 1, the entries' choices side by side.

        Raises:
            ValueError: Another size, another value than 0 and 1, or an entry that has no choice.
        """
        pieces = [np.asarray(piece).reshape(-1) for piece in _pieces(value)]
        flat: NDArray[Any] = np.concatenate(pieces) if pieces else np.zeros(0)
        if self.binary and flat.size == len(self.sizes):
            wrong = (flat != 0) & (flat != 1) & (flat != 2)
            if wrong.any():
                raise ValueError(f"holds {flat[wrong][0]}, not 0, 1 or 2")
            flat = np.stack([flat != 1, flat != 0], axis=-1).reshape(-1)
        entries = len(pieces) > 1 and len(pieces) == len(self.sizes)
        if flat.size != sum(self.sizes) or (entries and tuple(p.size for p in pieces) != self.sizes):
            raise ValueError(f"has {flat.size} entries, where the action {self.action!r} has {self._choices()}")
        wrong = (flat != 0) & (flat != 1)
        if wrong.any():
            raise ValueError(f"holds {flat[wrong][0]}, not 0 or 1")
        firsts = np.cumsum(self.sizes, dtype=np.int64) - np.array(self.sizes)
        empty = np.flatnonzero(np.add.reduceat(flat.astype(np.int64), firsts) == 0)
        if empty.size:
            which = "" if len(self.sizes) == 1 else f" for entry {int(empty[0])} of the action"
            raise ValueError(f"is all zero{which}: nothing is allowed to an agent that is to move")
        return flat.astype(np.int8)

    def _choices(self) -> str:
        total = sum(self.sizes)
        return f"{total} choices" if len(self.sizes) == 1 else f"{total} choices ({' + '.join(map(str, self.sizes))})"


@dataclass(frozen=True)
class MaskCodec:
    """Writes one agent's mask into rows of int8 arrays.

    Attributes:
        source: Where the mask is found, ``"observation"`` or ``"info"``.
        leaves: One for each action leaf that is masked.
    """

    source: Literal["observation", "info"]
    leaves: tuple[MaskLeaf, ...]

    @classmethod
    def in_observation(cls, observation: spaces.Space[Any], action: ActionCodec, *, where: str) -> MaskCodec | None:
        """The mask that a ``Dict`` observation shows under ``action_mask``, or None; `where` as in `ActionCodec.of`.

        Raises:
            UnsupportedSpace: There is one, but not of the action's parts.
        """
        if not isinstance(observation, spaces.Dict) or MASK not in observation.spaces:
            return None
        shown = observation.spaces[MASK]
        return cls._of("observation", action, lambda path: part_of(shown, path) is not None, where)

    @classmethod
    def in_info(cls, example: Any, action: ActionCodec, *, where: str) -> MaskCodec | None:
        """The mask of which `example` was found in an info under ``action_mask``, or None; see `in_observation`."""
        return None if example is None else cls._of("info", action, lambda path: _has(example, path), where)

    @classmethod
    def _of(
        cls, source: Literal["observation", "info"], action: ActionCodec, shown: Callable[[Path], bool], where: str
    ) -> MaskCodec | None:
        chosen = [leaf for leaf in action.leaves if not isinstance(leaf.space, spaces.Box)]
        leaves = [_leaf(leaf) for leaf in chosen if shown(leaf.path)]
        if chosen and not leaves:
            parts = ", ".join(leaf.name for leaf in chosen)
            raise UnsupportedSpace(
                f"{where}: {source} {MASK!r} has no part for any choice of the action ({parts}); nest it as the action "
                "is nested, or give it another name if it is not meant as a mask"
            )
        return cls(source, tuple(leaves)) if leaves else None

    def write(self, mask: Any, rows: Leaves, agent: int) -> None:
        """Write `mask` into row `agent` of each leaf of `rows`, ``{leaf: [A, n]}``.

        Raises:
            ValueError: See `MaskLeaf.bits`; names the leaf.
        """
        for leaf in self.leaves:
            try:
                rows[leaf.name][agent] = leaf.bits(at(mask, leaf.path) if leaf.path else mask)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.source} {leaf.name!r} {error}") from error


def _leaf(leaf: ActionLeaf) -> MaskLeaf:
    sizes = tuple(choices(leaf.space))
    name = MASK if leaf.name == LONE and not leaf.path else f"{MASK}/{leaf.name}"
    return MaskLeaf(name, leaf.name, leaf.path, sizes, isinstance(leaf.source, spaces.MultiBinary))


def _has(value: Any, path: Path) -> bool:
    try:
        return at(value, path) is not None
    except ValueError:
        return False


def _pieces(value: Any) -> Iterator[Any]:
    """The vectors of a mask in order, which Gymnasium nests in tuples as a `MultiDiscrete` has axes."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from _pieces(part)
    else:
        yield value
