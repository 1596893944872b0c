"""What ``marl-tr eval`` writes."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from marl_tr.cli import main

WholeRun = Callable[[str], Path]


def test_videos_are_gifs_where_asked_for_and_pictures_lie_beside_them(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run("uav_mlp"), tmp_path / "run"))
    assert main(["eval", str(run), "--episodes", "1", "--video", "--format", "gif"]) == 0
    printed = capsys.readouterr().out
    (video,) = (run / "media").glob("*.gif")
    assert f"video        {video}" in printed
    assert not list((run / "media").glob("*.mp4"))
    with Image.open(video) as film:
        assert film.format == "GIF"
        assert film.n_frames == 12
        assert film.info["duration"] == 100
    for name in ("tracks", "sinr"):
        (picture,) = (run / "media").glob(f"{name}_step*.png")
        assert f"picture      {picture}" in printed
        assert imageio.imread(picture).shape == (720, 960, 3)


def test_tables_of_so_many_episodes_are_written(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run("uav_mlp"), tmp_path / "run"))
    assert main(["eval", str(run), "--episodes", "3", "--csv", "2"]) == 0
    printed = capsys.readouterr().out
    files = sorted((run / "tables").iterdir())
    names = [f"{name}_episode{n}_step320.csv" for name in ("slots", "uavs", "users") for n in range(2)]
    assert [file.name for file in files] == sorted(names)
    for file in files:
        assert f"table        {file}" in printed
    rows = {}
    for file in files:
        with file.open(newline="") as text:
            rows[file.name] = list(csv.DictReader(text))
    for n in range(2):
        users, slots = rows[f"users_episode{n}_step320.csv"], rows[f"slots_episode{n}_step320.csv"]
        assert [*users[0]][:4] == ["t", "id", "x", "y"]
        assert len(users) == 13 * 4
        for slot in (1, 12):
            rates = [float(row["rate_bps"]) for row in users if float(row["t"]) == slot]
            assert np.sum(rates) == pytest.approx(1e6 * float(slots[slot - 1]["throughput_mbps"]), rel=1e-5)
    # Of the headline's episodes: the table on the screen has the mean of all three.
    assert re.search(r"throughput_mbps \| [\d.]+", printed)
    assert rows["users_episode0_step320.csv"] != rows["users_episode1_step320.csv"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("uav_mlp", ["--episodes", "2", "--csv", "3"], "tables of 3 episodes, but only 2 are played"),
        ("cartpole", ["--csv", "1"], "environment 'gymnasium/CartPole-v1' writes no tables"),
        ("uav_mlp", ["--format", "gif"], "Invalid value for --format"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_played(
    name: str,
    options: list[str],
    said: str,
    tmp_path: Path,
    whole_run: WholeRun,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(whole_run(name), tmp_path / "run")
    assert main(["eval", str(run), *options]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert "mean return" not in output.out
    assert not (run / "tables").exists()
