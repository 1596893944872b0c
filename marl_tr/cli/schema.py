"""``marl-tr schema``."""

from __future__ import annotations

__all__ = ["schema"]


def schema() -> None:
    """Print the JSON Schema of scenarios: completion and checks in editors that know YAML schemas."""
    import json

    from marl_tr.scenario.json_schema import scenario_schema

    print(json.dumps(scenario_schema(), indent=1, ensure_ascii=False))
