"""Scenarios: what a run is, read from YAML and checked before anything starts."""

from marl_tr.scenario.checks import scenario_warnings
from marl_tr.scenario.loader import load_scenario, resolved, scenario_yaml, shipped
from marl_tr.scenario.problems import Problem, ScenarioError
from marl_tr.scenario.schema import Scenario

__all__ = [
    "Problem",
    "Scenario",
    "ScenarioError",
    "load_scenario",
    "resolved",
    "scenario_warnings",
    "scenario_yaml",
    "shipped",
]
