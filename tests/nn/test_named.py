"""Modules by any name."""

import pytest
import torch
from torch import nn

from marl_tr.nn.named import NamedModules

NAMES = ("train", "team.red", "team/red", "", "items", "keys", "training", "uav", "_modules", "red uav/")


def test_modules_of_any_name_are_found_by_it_and_trained():
    modules = {name: nn.Linear(2, 3) for name in NAMES}
    named = NamedModules(modules)
    named["late"] = modules["late"] = nn.Linear(2, 3)
    assert dict(named.items()) == modules
    assert list(named) == list(named.keys()) == [*NAMES, "late"]
    assert all(named[name] is module for name, module in modules.items())
    assert "train" in named
    assert "eval" not in named
    assert len(list(named.parameters())) == 2 * len(modules)
    named["train"] = replaced = nn.Linear(2, 3)
    assert named["train"] is replaced
    assert len(named) == len(modules)
    assert named.pop("items") is modules["items"]
    assert "items" not in named
    with pytest.raises(KeyError):
        named["eval"]


def test_names_that_torch_takes_are_those_of_the_state_dict_and_the_others_come_back_too():
    plain, named = (
        kind({name: nn.Linear(2, 3) for name in ("uav", "red uav/")}) for kind in (nn.ModuleDict, NamedModules)
    )
    named.load_state_dict(plain.state_dict())
    one, other = (NamedModules({name: nn.Linear(2, 3) for name in NAMES}) for _ in range(2))
    other.load_state_dict(one.state_dict())
    for name in NAMES:
        assert torch.equal(one[name].weight, other[name].weight)
