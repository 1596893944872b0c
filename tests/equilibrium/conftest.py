"""Makes `matrix_games` and the tiny scenarios of the trainer's tests importable here, and trains each once."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))
sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))

from running import Command, the_run, write_scenario

MATRIX_RUN = """
name: matrix
preset: happo
env: {id: "matrix_games:MATRIX", num_envs: 64, config: {payoffs: [[[3, 0], [5, 1]], [[3, 5], [0, 1]]]}}
agents: {kind: gaussian, hidden: [8]}
trainer: {total_steps: 512, rollout_steps: 4}
evaluation: {every: 0, final_episodes: 4, media: false}
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a finished run of a scenario of `running`, or of ``matrix``; nobody may change it."""
    known: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            (folder / "matrix_games.py").write_bytes(Path(__file__).with_name("matrix_games.py").read_bytes())
            write_scenario(folder, name, MATRIX_RUN if name == "matrix" else None)
            done = Command(folder, "run", "scenario.yaml")
            assert done.wait() == 0, done.output()
            known[name] = the_run(folder)
        return known[name]

    return get
