"""Named algorithms as what they are: a choice of objective, region, schedule, sharing and critic.

| preset | sharing | objective | region   | schedule     | critic, its fit           | arXiv      |
|--------|---------|-----------|----------|--------------|---------------------------|------------|
| mappo  | all     | clip      | measured | simultaneous | centralized, adam         | 2103.01955 |
| ippo   | all     | clip      | measured | simultaneous | local, adam               | 2011.09533 |
| happo  | none    | clip      | measured | sequential   | centralized, adam         | 2109.11251 |
| hatrpo | none    | surrogate | trpo     | sequential   | centralized, trust_region | 2109.11251 |
| matrl  | none    | surrogate | trpo     | meta_game    | centralized, trust_region | 2106.06828 |
| matrpo | none    | surrogate | trpo     | consensus    | centralized, trust_region | 2010.07916 |

Agents of matrpo have ``scope: joint`` as well.
"""

from __future__ import annotations

import copy
from typing import Any

from marl_tr import registry
from marl_tr.errors import UserError

__all__ = ["PRESETS", "fill_in"]

_ADAM_STEPS: dict[str, Any] = {"learning_rate": 5e-4, "epochs": 5, "minibatches": 1}

PRESETS: dict[str, dict[str, Any]] = {
    "mappo": {
        "agents": {"sharing": "all"},
        "objective": {"kind": "clip"},
        "region": {"kind": "measured"},
        "schedule": {"kind": "simultaneous"},
        "critic": {"kind": "mlp", "scope": "centralized", "fit": {"kind": "adam"}},
        "optimizer": _ADAM_STEPS,
    },
    "ippo": {
        "agents": {"sharing": "all"},
        "objective": {"kind": "clip"},
        "region": {"kind": "measured"},
        "schedule": {"kind": "simultaneous"},
        "critic": {"kind": "mlp", "scope": "local", "fit": {"kind": "adam"}},
        "optimizer": _ADAM_STEPS,
    },
    "happo": {
        "agents": {"sharing": "none"},
        "objective": {"kind": "clip"},
        "region": {"kind": "measured"},
        "schedule": {"kind": "sequential"},
        "critic": {"kind": "mlp", "scope": "centralized", "fit": {"kind": "adam"}},
        "optimizer": _ADAM_STEPS,
    },
    "hatrpo": {
        "agents": {"sharing": "none"},
        "objective": {"kind": "surrogate"},
        "region": {"kind": "trpo"},
        "schedule": {"kind": "sequential"},
        "critic": {"kind": "mlp", "scope": "centralized", "fit": {"kind": "trust_region"}},
    },
    "matrl": {
        "agents": {"sharing": "none"},
        "objective": {"kind": "surrogate"},
        "region": {"kind": "trpo"},
        "schedule": {"kind": "meta_game"},
        "critic": {"kind": "mlp", "scope": "centralized", "fit": {"kind": "trust_region"}},
    },
    "matrpo": {
        "agents": {"sharing": "none", "scope": "joint"},
        "objective": {"kind": "surrogate"},
        "region": {"kind": "trpo"},
        "schedule": {"kind": "consensus"},
        "critic": {"kind": "mlp", "scope": "centralized", "fit": {"kind": "trust_region"}},
    },
}
"""What each preset fills in; ``agents`` goes to every entry of the scenario's list."""


def fill_in(data: dict[str, Any], preset: str) -> dict[str, Any]:
    """`data` with the preset under it: what `data` says wins, section by section and field by field.

    A part whose `kind` the scenario changed inherits nothing of the preset's other kind. A changed region brings its
    own way of stepping: where none of the regions takes gradient steps, the preset's `optimizer` stays out as well; and
    where it has a gain in place of the objective's, the preset's objective gives way to the one that it is of. Sections
    of an entry of `agents` inherit nothing.
    """
    base = copy.deepcopy(PRESETS[preset])
    for_agents = base.pop("agents")
    kinds = _region_kinds(data, base["region"])
    if all(_says(kind, "takes_own_step", True) for kind in kinds):
        base.pop("optimizer", None)
    only = _says(_kind(data.get("region"), base["region"]), "only_objective", None)
    if only is not None:
        base["objective"] = {"kind": only}
    merged: dict[str, Any] = _merge(base, data)
    agents = merged.get("agents")
    if isinstance(agents, list):
        merged["agents"] = [for_agents | entry if isinstance(entry, dict) else entry for entry in agents]
    return merged


def _says(region: Any, attribute: str, unknown: Any) -> Any:
    """A class attribute of a region's settings; `unknown` of a region that there is not, which is told elsewhere."""
    try:
        return getattr(registry.find("regions", str(region)).load_config(), attribute, None)
    except UserError:
        return unknown


def _merge(base: Any, own: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    if "kind" in base and _kind(own, base) != base["kind"]:
        return own
    filled = {key: value for key, value in base.items() if key not in own}
    return {key: _merge(base[key], value) if key in base else value for key, value in own.items()} | filled


def _region_kinds(data: dict[str, Any], base: dict[str, Any]) -> set[str]:
    """Kinds of the regions that some agents will have."""
    common, entries = _kind(data.get("region"), base), data.get("agents")
    if not isinstance(entries, list) or not entries:
        return {common}
    own = [entry.get("region") if isinstance(entry, dict) else None for entry in entries]
    return {_kind(region, base) if isinstance(region, dict) else common for region in own}


def _kind(own: Any, base: dict[str, Any]) -> str:
    # What is no name ('arxiv: 1707.06347' is a mapping) is told by whoever validates; here it is one that nobody has.
    return str(own.get("kind", base["kind"])) if isinstance(own, dict) else str(base["kind"])
