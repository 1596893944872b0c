"""Sweep files: what they may say, and that everything wrong with them is told at once, where it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps import SCENARIO, SWEEP, write_sweep

from marl_tr import registry
from marl_tr.comparison.sweep import flat, load_sweep
from marl_tr.scenario import ScenarioError, load_scenario, resolved
from marl_tr.scenario.document import dump_yaml

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "benchmarks" / "sweeps").glob("*.yaml"))


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        load_sweep(path, overrides)
    return [str(problem).splitlines()[0].removeprefix(f"{path}:") for problem in caught.value.problems]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_that_come_with_the_package_are_good(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.file.name == path.stem
    assert sweep.warnings == ()
    assert len(sweep.seeds) >= 3


def test_every_variant_is_made_on_every_task_it_names(tmp_path: Path) -> None:
    text = SWEEP.replace("[region.bound=0.001]}", "[region.bound=0.001], tasks: [stick]}")
    sweep = load_sweep(write_sweep(tmp_path, text))
    assert [cell.label for cell in sweep.cells] == ["pole/wide", "stick/wide", "stick/narrow"]
    assert [cell.scenario.region.config.bound for cell in sweep.cells] == [0.02, 0.02, 0.001]
    assert {cell.scenario.advantage.gamma for cell in sweep.cells} == {0.9}


def test_overrides_win_in_the_order_sweep_variant_command_line(tmp_path: Path) -> None:
    text = SWEEP.replace("[region.bound=0.02]", "[advantage.gamma=0.5, advantage.lam=0.5]")
    path = write_sweep(tmp_path, text)
    wide, narrow = load_sweep(path).of_task("pole")
    assert (wide.scenario.advantage.gamma, narrow.scenario.advantage.gamma) == (0.5, 0.9)
    sweep = load_sweep(path, ["advantage.lam=0.25"], seeds=[7])
    assert [cell.scenario.advantage.lam for cell in sweep.cells] == [0.25] * 4
    assert sweep.seeds == (7,)


def test_a_variant_may_have_a_scenario_of_its_own_on_a_task(tmp_path: Path) -> None:
    text = SWEEP.replace("narrow: {overrides", "narrow: {scenario: {stick: other.yaml}, overrides")
    path = write_sweep(tmp_path, text)
    (tmp_path / "other.yaml").write_text(SCENARIO.replace("[16]", "[8]"))
    hidden = {cell.label: cell.scenario.agents[0].config.hidden for cell in load_sweep(path).cells}
    assert {label: tuple(widths) for label, widths in hidden.items()} == {
        "pole/wide": (16,),
        "pole/narrow": (16,),
        "stick/wide": (16,),
        "stick/narrow": (8,),
    }


def test_one_scenario_for_several_tasks_is_refused(tmp_path: Path) -> None:
    text = SWEEP.replace("narrow: {overrides", "narrow: {scenario: scenario.yaml, overrides")
    (told,) = problems(write_sweep(tmp_path, text))
    assert "one scenario for several tasks" in told


def test_an_empty_variant_is_the_task_as_it_is(tmp_path: Path) -> None:
    for empty in ("", "[]", "{}"):
        text = SWEEP.replace("wide: [region.bound=0.02]", f"wide: {empty}")
        assert load_sweep(write_sweep(tmp_path, text)).cells[0].scenario.region.config.bound == 0.01


def test_all_that_is_wrong_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        "name: small\n"
        "tasks: {pole: scenario.yaml, gone: gone.yaml, odd: cartpol}\n"
        "seeds: [1, 2, 1]\n"
        "sed: 3\n"
        "overrides: [region.bond=1]\n"
        "variants:\n"
        "  wide: [region.bound=-1]\n"
        "  narrow: {overrides: [trainer.total_steps], task: [pole]}\n"
        "  lost: {tasks: [pol]}\n"
        "baseline: wid\n"
        "threshold: {pol: 1}\n"
        "range: {pole: [1, 1]}\n",
    )
    told = problems(path, "agents.hiden=[1]")
    expected = [
        ("2:36: tasks.gone", "gone.yaml: no such file"),
        ("2:52: tasks.odd", "did you mean 'cartpole'"),
        ("4:1: sed", "did you mean 'seeds'"),
        ("5:13: region.bond", "unknown key 'bond'; did you mean 'bound'"),
        ("7:10: region.bound", "must be greater than 0"),
        ("8:46: variants.narrow.task", "did you mean 'tasks'"),
        ("8:24: trainer.total_steps", "is not of the form"),
        ("9:18: variants.lost.tasks.0", "did you mean 'pole'"),
        ("10:11: baseline", "did you mean 'wide'"),
        ("11:13: threshold.pol", "did you mean 'pole'"),
        ("12:15: range.pole", "must rise"),
        ("override 1: ", "unknown key 'hiden'; did you mean 'hidden'"),
    ]
    for place, message in expected:
        assert any(line.startswith(place) and message in line for line in told), (place, message, told)


def test_names_and_numbers_of_a_sound_file_are_checked(tmp_path: Path) -> None:
    text = SWEEP.replace("baseline: wide", "baseline: wid\nrange: {pole: [1, 1]}\nscore: {stik: x}")
    told = problems(write_sweep(tmp_path, text.replace("[1, 2]", "[1, 1]")))
    assert any("seeds.1: seed 1 is given twice" in line for line in told)
    assert any("no variant 'wid'; did you mean 'wide'?" in line for line in told)
    assert any("range.pole: must rise" in line for line in told)
    assert any("score.stik: no task 'stik'; did you mean 'stick'?" in line for line in told)


def test_what_several_variants_have_wrong_is_told_once(tmp_path: Path) -> None:
    told = problems(write_sweep(tmp_path, SWEEP.replace("advantage.gamma=0.9", "advantage.gamma=2")))
    assert len(told) == 1
    assert told[0].startswith("5:13: advantage.gamma: ")
    only = problems(write_sweep(tmp_path, SWEEP.replace("region.bound=0.02", "region.bound=0")))
    assert len(only) == 1
    assert "(in pole/wide, stick/wide)" in only[0]


@pytest.mark.parametrize("text", ["", "- a\n", "name: x\n"])
def test_a_file_that_is_no_sweep_says_so(text: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError):
        load_sweep(write_sweep(tmp_path, text))


def test_variants_that_play_different_games_are_warned_of(tmp_path: Path) -> None:
    text = SWEEP.replace("[region.bound=0.02]", "[env.id=gymnasium/Acrobot-v1, evaluation.seed=4]")
    (first, second) = load_sweep(write_sweep(tmp_path, text)).warnings
    assert first == "pole: variants differ in env.id, evaluation.seed: they are not compared on the same footing"
    assert second.startswith("stick: ")


@pytest.mark.parametrize(("every", "told"), [("", ["pole", "stick"]), (", evaluation.every=4", [])])
def test_evaluations_are_so_many_steps_apart_however_long_rollouts_are(
    every: str, told: list[str], tmp_path: Path
) -> None:
    text = SWEEP.replace("[region.bound=0.02]", f"[trainer.rollout_steps=5{every}]")
    warnings = load_sweep(write_sweep(tmp_path, text)).warnings
    assert [warning.split(": variants differ in evaluation.every: ")[0] for warning in warnings] == told


def test_a_cells_scenario_can_be_run_as_it_is_written(tmp_path: Path) -> None:
    cell = load_sweep(write_sweep(tmp_path)).cells[0]
    file = tmp_path / "cell.yaml"
    file.write_text(dump_yaml(cell.run_scenario(runs_dir=tmp_path / "a: b")))
    again = load_scenario(file, ["seed=3"])
    before, after = flat(resolved(cell.scenario)), flat(resolved(again))
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == {"name", "seed", "trainer.runs_dir"}
    assert again.trainer.runs_dir == str(tmp_path / "a: b" / "pole")


def test_every_region_is_compared_in_a_sweep_that_comes_with_the_package() -> None:
    compared = set()
    for path in SWEEPS:
        for variant in load_sweep(path).file.variants.values():
            overrides = variant if isinstance(variant, list) else variant.overrides
            compared |= {override.removeprefix("region.kind=") for override in overrides}
    assert set(registry.names("regions")) <= compared
