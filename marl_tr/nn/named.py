"""Modules by names that a user chose."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping

from torch import nn

__all__ = ["NamedModules"]


class NamedModules(nn.ModuleDict):
    """A ``ModuleDict`` of any names, such as those of groups and leaves.

    PyTorch refuses dots and the names of its own methods, and there are trains (``train_0``) and items in the world.
    Names that it takes are kept as they are in a state dict.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._key_of: dict[str, str] = {}
        self.update(modules)

    def __getitem__(self, name: str) -> nn.Module:
        return super().__getitem__(self._key_of[name])

    def __setitem__(self, name: str, module: nn.Module) -> None:
        key = self._key_of.get(name) or name.replace(".", "/")
        while name not in self._key_of and (not key or hasattr(self, key)):
            key += "/"
        self._key_of[name] = key
        super().__setitem__(key, module)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(self._key_of.pop(name))

    def __contains__(self, name: object) -> bool:
        return name in self._key_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._key_of)

    def get(self, name: str) -> nn.Module | None:
        """The module of that name, or None."""
        key = self._key_of.get(name)
        return None if key is None else super().__getitem__(key)

    def keys(self) -> KeysView[str]:
        """The names as they were given."""
        return self._key_of.keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """The names as they were given, and their modules."""
        return {name: self[name] for name in self._key_of}.items()
