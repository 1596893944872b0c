"""A small good scenario, and a way to break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from marl_tr.scenario import Problem, ScenarioError, load_scenario

GOOD = """\
name: good
preset: hatrpo
env: {id: "tests_fake:make", num_envs: 4}
agents: {kind: gaussian}
trainer: {total_steps: 100}
"""


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A good scenario's text; two factories lie beside it, whose arguments are checked by name."""
    (tmp_path / "tests_fake.py").write_text("def make(size=1, speed=1.0): ...\ndef strict(size): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return GOOD


@pytest.fixture
def problems(tmp_path: Path) -> Callable[..., list[Problem]]:
    """``problems(text, overrides)``: what is wrong with a scenario file of that text (or of those bytes)."""

    def load(text: str | bytes, overrides: tuple[str, ...] = ()) -> list[Problem]:
        path = tmp_path / "scenario.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            load_scenario(path, overrides)
        except ScenarioError as error:
            return error.problems
        return []

    return load
