"""What a comparison says of runs whose scores are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweeps import SWEEP, write_run, write_sweep

from marl_tr.analysis.curves import CurveError
from marl_tr.comparison.compare import NoComparison, compare
from marl_tr.comparison.report import markdown, marl_eval
from marl_tr.comparison.runs import ChangedSettings, clock, find_runs
from marl_tr.comparison.summary import summarise
from marl_tr.comparison.sweep import Sweep, load_sweep

# At 0, 100, 200 and 300 steps, for seeds 1 and 2.
SCORES = {
    "pole/wide": ([0, 10, 20, 20], [0, 2, 8, 10]),
    "pole/narrow": ([2, 2, 2, 15], [2, 2, 2, 5]),
    "stick/wide": ([1, 1, 1, 1], [1, 1, 1, 1]),
    "stick/narrow": ([1, 1, 1, 2], [1, 1, 3, 4]),
}


def sweep_with_runs(tmp_path: Path, text: str = SWEEP, skip: tuple[str, int] | None = None) -> tuple[Sweep, Path]:
    sweep, out = load_sweep(write_sweep(tmp_path, text)), tmp_path / "out"
    for cell in sweep.cells:
        for seed, values in enumerate(SCORES[cell.label], start=1):
            if (cell.label, seed) != skip:
                write_run(cell, seed, out, values)
    return sweep, out


def reported(sweep: Sweep, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(summarise(sweep, find_runs(sweep, out), out, []), allow_nan=False))
    return found


def test_scores_threshold_and_ratios_by_hand(tmp_path: Path) -> None:
    report = reported(*sweep_with_runs(tmp_path))
    pole = report["tasks"]["pole"]
    wide, narrow = pole["variants"]["wide"], pole["variants"]["narrow"]
    assert wide["scores"] == {"1": 20, "2": 10}
    assert wide["iqm"]["estimate"] == 15
    assert (wide["iqm"]["low"], wide["iqm"]["high"]) == (10, 20)
    # Before learning the four runs have 0, 0, 2, 2: IQM 1. 90 % of the way from 1 to 15 is 13.6.
    assert pole["before_learning"] == 1
    assert pole["threshold"]["value"] == pytest.approx(13.6)
    assert wide["steps_to_threshold"] == {"1": 200, "2": None}
    assert narrow["steps_to_threshold"] == {"1": 300, "2": None}
    assert (wide["reached"], wide["median_steps_to_threshold"]) == (0.5, None)
    assert wide["seconds_to_threshold"] == {"1": 20, "2": None}
    assert (wide["median_seconds"], narrow["seconds_ratio"], wide["seconds_ratio"]) == (30, 1, 1)
    assert narrow["steps_to_threshold_ratio"] is None
    assert wide["normalised"] == pytest.approx([19 / 14, 9 / 14])


def test_given_thresholds_and_ranges_are_used(tmp_path: Path) -> None:
    text = SWEEP + "threshold: {pole: 10}\nrange: {pole: [0, 20]}\n"
    pole = reported(*sweep_with_runs(tmp_path, text))["tasks"]["pole"]
    assert pole["variants"]["wide"]["median_steps_to_threshold"] == (100 + 300) / 2
    assert pole["variants"]["wide"]["normalised"] == [1.0, 0.5]
    assert (pole["range"]["how"], pole["threshold"]["how"]) == ("given", "given")


def test_improvement_is_averaged_over_tasks(tmp_path: Path) -> None:
    found = reported(*sweep_with_runs(tmp_path))["improvement"]
    # pole: 20 > 15, 20 > 5, 10 < 15, 10 > 5: 3 of 4. stick: 1 < 2, 1 < 4: none.
    assert found["wide"]["narrow"]["estimate"] == pytest.approx(3 / 8)
    assert found["narrow"]["wide"]["estimate"] == pytest.approx(5 / 8)
    assert found["narrow"]["wide"]["low"] == pytest.approx(1 - found["wide"]["narrow"]["high"])
    assert found["narrow"]["wide"]["tasks"] == ["pole", "stick"]


def test_over_tasks_scores_are_normalised(tmp_path: Path) -> None:
    overall = reported(*sweep_with_runs(tmp_path))["overall"]
    # stick: 0 is 1 (before), 1 is 3 (IQM of 2 and 4).
    own = sorted([19 / 14, 9 / 14, 0, 0])
    assert overall["variants"]["wide"]["iqm"]["estimate"] == pytest.approx(np.mean(own[1:3]))
    profile = overall["profiles"]["variants"]["wide"]
    at_half = np.searchsorted(overall["profiles"]["thresholds"], 0.5)
    assert profile["estimate"][at_half] == 0.5


def test_curves_are_interquartile_means_of_the_runs(tmp_path: Path) -> None:
    wide = reported(*sweep_with_runs(tmp_path))["tasks"]["pole"]["variants"]["wide"]
    assert wide["curve"]["steps"] == [0, 100, 200, 300]
    assert wide["curve"]["estimate"] == [0, 6, 14, 15]
    assert (wide["time_curve"]["seconds"][0], wide["time_curve"]["seconds"][-1]) == (0, 30)


def test_outputs_are_the_same_however_often_they_are_made(tmp_path: Path) -> None:
    sweep, out = sweep_with_runs(tmp_path)
    compare(sweep, out, report_only=True, say=lambda line: None)
    names = ["compare.json", "compare.md", "marl_eval.json", "compare.png", "compare_time.png", "profiles.png"]
    first = {name: (out / name).read_bytes() for name in names}
    assert json.loads(first["compare.json"]) == reported(sweep, out)
    compare(sweep, out, report_only=True, say=lambda line: None)
    assert first == {name: (out / name).read_bytes() for name in names}


def test_few_runs_rank_nothing_and_every_output_says_so(tmp_path: Path) -> None:
    sweep, out = sweep_with_runs(tmp_path)
    report = reported(sweep, out)
    assert report["note"] == "a look: no ranking (a variant has 2 runs on a task, fewer than 5)"
    assert "**A look: no ranking" in markdown(report)
    said: list[str] = []
    compare(sweep, out, report_only=True, say=said.append)
    assert f"warning: {report['note']}" in said


def test_five_runs_are_no_look(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path), seeds=range(1, 6))
    for cell in sweep.cells:
        for seed in sweep.seeds:
            write_run(cell, seed, tmp_path / "out", [0, seed, 2 * seed, 3 * seed])
    assert reported(sweep, tmp_path / "out")["note"] is None


def test_what_is_missing_is_told_and_left_out(tmp_path: Path) -> None:
    sweep, out = sweep_with_runs(tmp_path, skip=("pole/wide", 2))
    report = reported(sweep, out)
    assert report["warnings"] == ["left out of all numbers, not there: pole/wide seed 2"]
    wide = report["tasks"]["pole"]["variants"]["wide"]
    assert (wide["runs"], wide["of"], wide["iqm"]) == (1, 2, {"estimate": 20, "low": None, "high": None})
    assert wide["curve"]["low"] is None
    assert "| wide | 1 of 2 | 20.00 |" in markdown(report)


def test_a_diverged_run_is_told_as_what_flatters_its_variant(tmp_path: Path) -> None:
    sweep, out = sweep_with_runs(tmp_path, skip=("pole/wide", 2))
    folder = write_run(sweep.cells[0], 2, out, [0, 1], finished=False)
    (folder / "diverged.json").write_text('{"cause": "a loss is not finite"}')
    report = reported(sweep, out)
    assert "left out of all numbers, diverged: pole/wide seed 2" in report["warnings"]
    assert any("looks better than it is" in warning for warning in report["warnings"])
    assert "a loss is not finite" in [run.get("cause") for run in report["runs"]]


def test_a_variant_that_is_not_on_every_task_is_not_ranked_over_tasks(tmp_path: Path) -> None:
    text = SWEEP.replace("[region.bound=0.001]}", "[region.bound=0.001], tasks: [pole]}")
    sweep, out = sweep_with_runs(tmp_path, text)
    report = reported(sweep, out)
    # Nobody learned on stick: no range, and so no part of what is over tasks.
    assert report["overall"]["tasks"] == ["pole"]
    assert report["overall"]["tasks_left_out"] == ["stick"]
    assert report["improvement"]["narrow"]["wide"]["tasks"] == ["pole"]


def test_a_run_of_several_processes_has_the_time_of_all(tmp_path: Path) -> None:
    cell = load_sweep(write_sweep(tmp_path)).cells[0]
    folder = write_run(cell, 1, tmp_path / "out", [0, 1, 2, 3], clock=[10.0, 4.0, 9.0])
    assert clock(folder) == ([(100, 10.0), (200, 14.0), (300, 19.0)], 2)


def test_a_process_that_soon_stopped_counts_too(tmp_path: Path) -> None:
    """Its clock is behind the next one's all along: that it began elsewhere tells them apart."""
    cell = load_sweep(write_sweep(tmp_path)).cells[0]
    folder = write_run(cell, 1, tmp_path / "out", [0, 1, 2, 3], clock=[2.0, 5.0, 9.0], began=[0, 100, 100])
    assert clock(folder) == ([(100, 2.0), (200, 7.0), (300, 11.0)], 2)
    older = write_run(cell, 2, tmp_path / "out", [0, 1, 2, 3], clock=[2.0, 5.0, 9.0])
    assert clock(older) == ([(100, 2.0), (200, 5.0), (300, 9.0)], 1)


def test_runs_are_written_in_the_shape_of_marl_eval(tmp_path: Path) -> None:
    sweep, out = sweep_with_runs(tmp_path)
    data = marl_eval(sweep, find_runs(sweep, out))
    run = data["gymnasium/CartPole-v1"]["pole"]["wide"]["seed_1"]
    assert list(run) == ["step_0", "step_1", "step_2", "step_3", "absolute_metrics"]
    assert run["step_2"] == {"step_count": 200, "elapsed_time": 20.0, "return": [20.0]}
    assert run["absolute_metrics"] == {"return": [20.0]}
    assert {seed for variant in data["gymnasium/CartPole-v1"]["stick"].values() for seed in variant} == {
        "seed_1",
        "seed_2",
    }


def test_runs_of_other_settings_are_refused_with_what_changed(tmp_path: Path) -> None:
    _, out = sweep_with_runs(tmp_path)
    other = load_sweep(write_sweep(tmp_path, SWEEP.replace("0.001", "0.002")))
    with pytest.raises(ChangedSettings) as caught:
        compare(other, out, report_only=True)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5  # narrow's four runs, and what to do
    assert all("region.bound was 0.001 and is 0.002" in line and "/narrow/" in line for line in lines[:4])
    assert "--out" in lines[4]


def test_settings_that_change_nothing_learned_may_change(tmp_path: Path) -> None:
    _, out = sweep_with_runs(tmp_path)
    file = write_sweep(tmp_path, SWEEP.replace("small", "other"))
    again = load_sweep(file, ["trainer.checkpoint_every=7", "description=x"])
    assert {run.state for run in find_runs(again, out)} == {"finished"}
    reported(again, out)


def test_a_last_point_over_more_episodes_than_the_others_is_told(tmp_path: Path) -> None:
    same = markdown(reported(*sweep_with_runs(tmp_path / "same")))
    more = SWEEP.replace("advantage.gamma=0.9", "advantage.gamma=0.9, evaluation.final_episodes=7")
    told = markdown(reported(*sweep_with_runs(tmp_path / "more", more)))
    assert "on the way" not in same.split("## How to read it")[0]
    assert "mean over 7 held-out episodes" in told
    assert "Evaluations on the way are over 2 episodes, not those of a curve's last point" in told


def test_scores_below_one_have_three_decimals(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path), seeds=[1])
    for cell in sweep.cells:
        write_run(cell, 1, tmp_path / "out", [0, 0.5, 0.1234, 0.9376])
    assert "| wide | 1 of 1 | 0.938 | 0.938 | 0.938 |" in markdown(reported(sweep, tmp_path / "out"))


def test_runs_made_with_other_versions_are_told(tmp_path: Path) -> None:
    sweep, out = sweep_with_runs(tmp_path, skip=("pole/wide", 2))
    write_run(sweep.cells[0], 2, out, [0, 1, 2, 3], head="# marl-tr 1")
    (warning,) = reported(sweep, out)["warnings"]
    assert warning == "runs were made with different versions: marl-tr 0; marl-tr 1"


def test_a_score_that_runs_do_not_have_is_told_with_the_nearest(tmp_path: Path) -> None:
    sweep, out = sweep_with_runs(tmp_path, SWEEP + "score: {pole: eval/sampled/men}\n")
    with pytest.raises(CurveError, match="did you mean 'eval/sampled/mean'"):
        compare(sweep, out, report_only=True)


def test_a_report_on_a_folder_without_runs_makes_none_and_says_what_was_meant(tmp_path: Path) -> None:
    sweep, out = sweep_with_runs(tmp_path)
    with pytest.raises(NoComparison, match=r"no folder .*oat.runs; did you mean .*out\?") as caught:
        compare(sweep, tmp_path / "oat", report_only=True)
    assert str(out) in str(caught.value)
    assert not (tmp_path / "oat").exists()


def test_nothing_finished_is_nothing_to_report(tmp_path: Path) -> None:
    sweep, said = load_sweep(write_sweep(tmp_path)), []
    write_run(sweep.cells[0], 1, tmp_path / "out", [0, 1], finished=False)
    assert compare(sweep, tmp_path / "out", report_only=True, say=said.append).summary is None
    assert said == ["no run is finished: there is nothing to report"]
