"""Makes `running` and `turn_examples` importable here, and runs each tiny scenario once for all tests that need it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))

from running import Command, the_run, write_scenario


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted run of a scenario of `running`; nobody may change it."""
    known: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            write_scenario(folder, name)
            done = Command(folder, "run", "scenario.yaml")
            assert done.wait() == 0, done.output()
            known[name] = the_run(folder)
        return known[name]

    return get
