"""What a person sees of a run: its end, an evaluation, pictures, attention maps, chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from marl_tr.analysis.chain_plots import chain_figure
from marl_tr.analysis.curves import ChainUpdate, read_chains, read_scalars
from marl_tr.analysis.plots import Curve, figure_pixels, learning_curve_figure, save_figure
from marl_tr.analysis.video import write_video
from marl_tr.errors import UserError
from marl_tr.rollout.team import Team
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.build import build_env, device_of
from marl_tr.trainer.evaluation import Episodes, policy_actor, summarise
from marl_tr.trainer.held_out import convention, returns_apart
from marl_tr.trainer.seats import Match
from marl_tr.vector import Table
from marl_tr.vector.tables import write_table

__all__ = [
    "REPORT",
    "attention_pictures",
    "chain_pictures",
    "film",
    "show_end",
    "show_evaluation",
    "show_finished",
    "show_start",
    "write_figures",
    "write_media",
    "write_tables",
]

LEARNING_CURVE = "learning_curve.png"
REPORT = "report.md"


def write_figures(
    scenario: Scenario,
    folder: Path,
    results: Mapping[str, Episodes],
    references: Mapping[str, Episodes],
    *,
    agents: int,
    pictures: Mapping[str, NDArray[Any]],
    videos: Mapping[str, NDArray[Any]] | None = None,
) -> list[Path]:
    """Write `pictures`, `videos`, the chains and the learning curve to ``media/``; returns the files."""
    media = folder / "media"
    how = convention(next(iter(results.values())), agents)
    files = write_media(folder, pictures, videos or {})
    return [
        *files,
        *_chains(scenario, folder, media),
        _learning_curve(scenario, folder, references, how, media / LEARNING_CURVE),
    ]


def write_media(
    folder: Path,
    pictures: Mapping[str, NDArray[Any]],
    videos: Mapping[str, NDArray[Any]],
    *,
    suffix: str = "",
    video_format: str = "mp4",
) -> list[Path]:
    """Write pictures as PNG and videos to the run's ``media/``, by their tags; returns the files.

    Args:
        folder: Of the run.
        pictures: ``[H, W, 3]`` uint8 by tag; ``media/mode/clips`` becomes ``mode_clips.png``.
        videos: ``[T, H, W, 3]`` uint8 by tag.
        suffix: Behind each file's stem.
        video_format: ``"mp4"`` or ``"gif"``.

    Raises:
        UserError: A file cannot be written.
    """
    import imageio.v3 as imageio

    media = folder / "media"
    files: list[Path] = []
    for tag, picture in pictures.items():
        files.append(media / f"{_stem(tag)}{suffix}.png")
        try:
            media.mkdir(exist_ok=True)
            imageio.imwrite(files[-1], picture)
        except OSError as error:
            raise UserError(f"cannot write {files[-1]}: {error.strerror or error}") from error
    for tag, video in videos.items():
        files.append(media / f"{_stem(tag)}{suffix}.{video_format}")
        write_video(files[-1], video)
    return files


def show_start(folder: Path, *, agents: int, console: Console) -> None:
    """Print where a run writes, and how the returns in its progress are to be read."""
    who = "one agent" if agents == 1 else f"mean over {agents} agents"
    console.print(f"{'run':<12} {folder}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{'returns':<12} {who}, whole episodes, undiscounted", markup=False, highlight=False, soft_wrap=True)


def show_end(
    scenario: Scenario,
    folder: Path,
    results: Mapping[str, Episodes],
    references: Mapping[str, Episodes],
    *,
    matches: Sequence[Match],
    seconds: Mapping[str, float],
    agents: int,
    resumed_at: int | None,
    figures: Sequence[Path],
    console: Console,
) -> None:
    """Print and write down what a finished run came to.

    Args:
        scenario: Of the run.
        folder: Of the run; gets ``report.md``.
        results: Of the final evaluation.
        references: Beside them.
        seconds: Wall time by part of the run, and of it all under ``wall``.
        agents: How many.
        resumed_at: Step from which this process went on; `seconds` are from there.
        figures: Files to name.
        console: Where to print.
    """
    how = convention(next(iter(results.values())), agents)
    lines = [*_table(results, references, matches, scenario, how), "", _time_split(seconds, resumed_at)]
    report = folder / REPORT
    # Renamed when whole: the report says that the run is finished.
    partial = report.with_suffix(".partial")
    partial.write_text("# " + scenario.name + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(report)
    console.print()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()
    _show_places(folder, figures, console)


def show_finished(folder: Path, console: Console) -> None:
    """Print the report of a run that has nothing left to do."""
    console.print(f"{folder} is finished; nothing was changed.\n", markup=False, highlight=False, soft_wrap=True)
    report = (folder / REPORT).read_text(encoding="utf-8")
    console.print(report, markup=False, highlight=False, soft_wrap=True)
    _show_places(folder, sorted((folder / "media").glob("*.png")), console)


def show_evaluation(
    scenario: Scenario,
    folder: Path,
    results: Mapping[str, Episodes],
    references: Mapping[str, Episodes],
    *,
    matches: Sequence[Match],
    step: int,
    agents: int,
    console: Console,
) -> None:
    """Print the table of an evaluation of step `step`."""
    console.print(f"{folder}: step {step:,}", markup=False, highlight=False, soft_wrap=True)
    for line in _table(results, references, matches, scenario, convention(next(iter(results.values())), agents)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_tables(folder: Path, tables: Mapping[str, Table], *, suffix: str = "") -> list[Path]:
    """Write tables as CSV to the run's ``tables/``, by their names and `suffix`; returns the files.

    Raises:
        UserError: A file cannot be written.
    """
    files = [folder / "tables" / f"{name}{suffix}.csv" for name in tables]
    for file, table in zip(files, tables.values(), strict=True):
        write_table(file, table)
    return files


def film(
    scenario: Scenario, teams: Sequence[Team], folder: Path, step: int, *, video_format: str = "mp4"
) -> Path | None:
    """One held-out episode as an MP4 or a GIF, drawn by the environment's ``render()``; the headline's way of acting.

    None where a native environment has no ``render()``.

    Raises:
        UserError: It draws nothing that can be filmed, or the film cannot be written.
    """
    settings = scenario.evaluation
    env: Any = build_env(scenario, num_envs=1, render=True)
    try:
        if not hasattr(env, "render"):
            return None
        act = policy_actor(
            teams,
            env,
            mode=settings.policies[0] == "mode",
            seed=settings.seed,
            device=device_of(scenario),
        )
        now = env.reset(settings.seed)
        frames = [env.render()]
        while not now.done[0]:
            now = env.step(act(now))
            # The step in which an episode ends already shows the next one.
            if not now.done[0]:
                frames.append(env.render())
    finally:
        env.close()
    path = folder / "media" / f"episode_step{step}.{video_format}"
    try:
        path.parent.mkdir(exist_ok=True)
        write_video(path, np.stack(frames))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def attention_pictures(maps: Mapping[str, Tensor], agents: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Mean attention maps ``[A, heads A]`` (row: who attends) as pictures, values written in the cells."""
    from matplotlib.figure import Figure

    from marl_tr.analysis.plots import figure_pixels

    pictures: dict[str, NDArray[Any]] = {}
    for tag, weights in maps.items():
        values = weights.cpu().numpy()
        heads = values.shape[1] // values.shape[0]
        figure = Figure(figsize=(1.2 + 2.2 * heads, 2.8), dpi=90, layout="constrained")
        for head, axes in enumerate(np.atleast_1d(figure.subplots(1, heads))):
            part = values[:, head * len(agents) : (head + 1) * len(agents)]
            axes.imshow(part, vmin=0, vmax=1, cmap="viridis")
            axes.set_title(f"head {head}", fontsize=9)
            axes.set_xlabel("attended to", fontsize=7)
            if head == 0:
                axes.set_ylabel("who attends", fontsize=7)
            axes.set_xticks(range(len(agents)), agents, fontsize=7, rotation=45)
            axes.set_yticks(range(len(agents)), agents if head == 0 else [], fontsize=7)
            for i, row in enumerate(part):
                for j, value in enumerate(row):
                    axes.text(
                        j,
                        i,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="black" if value > 0.6 else "white",
                    )
        pictures[tag] = figure_pixels(figure)
    return pictures


def chain_pictures(chains: Mapping[str, Mapping[str, Sequence[float]]], *, step: int) -> dict[str, NDArray[Any]]:
    """``media/chain/<learner>``: what the newest updates did to each step of the policies' chains."""
    return {
        f"media/chain/{learner}": figure_pixels(
            chain_figure(
                [
                    ChainUpdate(
                        step=step,
                        learner=learner,
                        measures={name: np.array(values) for name, values in measures.items()},
                    )
                ],
                title=f"update of {learner} at step {step:,}",
            )
        )
        for learner, measures in chains.items()
    }


def _show_places(folder: Path, figures: Sequence[Path], console: Console) -> None:
    for label, text in (
        ("run", folder),
        *(("video" if path.suffix == ".mp4" else "figure", path) for path in figures),
        ("TensorBoard", f"marl-tr tb {folder}"),
        ("audit", f"marl-tr audit {folder}"),
    ):
        console.print(f"{label:<12} {text}", markup=False, highlight=False, soft_wrap=True)


def _table(
    results: Mapping[str, Episodes],
    references: Mapping[str, Episodes],
    matches: Sequence[Match],
    scenario: Scenario,
    how: str,
) -> list[str]:
    window = scenario.evaluation.window
    count = len(next(iter(results.values())).returns)
    last = f" reward a step, last {window} |" if window else ""
    lines = [
        f"Return ({how}; {count} held-out episodes)",
        "",
        f"| policy | mean return | IQM [95 % CI] |{last}",
        "|---|---|---|" + ("---|" if window else ""),
    ]
    named = [(f"learned, {policy}", episodes) for policy, episodes in results.items()]
    for name, episodes in [*named, *references.items()]:
        summary = summarise(episodes.returns, seed=scenario.evaluation.seed)
        line = f"| {name} | {summary.mean:.3f} | {summary.iqm:.3f} [{summary.ci_low:.3f}, {summary.ci_high:.3f}] |"
        lines.append(line + (f" {episodes.window.mean():.3f} |" if episodes.window is not None else ""))
    return [
        *lines,
        *_agents_table(results, references),
        *_matches_table(matches, scenario),
        *_metrics_table(results, references),
    ]


def _agents_table(results: Mapping[str, Episodes], references: Mapping[str, Episodes]) -> list[str]:
    """Mean return of each agent, a row each; nothing where all earn the same."""
    named = {**{f"learned, {policy}": episodes for policy, episodes in results.items()}, **references}
    columns = [returns_apart(episodes) for episodes in named.values()]
    rows = dict.fromkeys(agent for column in columns for agent in column)
    if not rows:
        return []
    every = [episodes.by_agent for episodes in named.values()]
    return [
        "",
        "Mean return of each agent, over the same episodes",
        "",
        f"| agent | {' | '.join(named)} |",
        "|---|" + "---|" * len(named),
        *(f"| {agent} | {' | '.join(f'{own[agent].mean():.3f}' for own in every)} |" for agent in rows),
    ]


def _matches_table(matches: Sequence[Match], scenario: Scenario) -> list[str]:
    if not matches:
        return []
    lines = []
    for match in matches:
        interval = match.interval(seed=scenario.evaluation.seed)
        mean = f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
        lines.append(f"| {match.seat} | {match.opponent} | {mean} | {match.won.mean():.0%} |")
    return [
        "",
        f"Learned policies ({scenario.evaluation.policies[0]}) in one seat, an opponent in all others; "
        f"{len(matches[0].returns)} episodes each",
        "",
        "| seat | opponent | mean return of the seat [95 % CI] | won |",
        "|---|---|---|---|",
        *lines,
    ]


def _time_split(seconds: Mapping[str, float], resumed_at: int | None) -> str:
    wall = max(seconds["wall"], 1e-9)
    parts = {name: value for name, value in seconds.items() if name != "wall"}
    parts["other"] = max(0.0, wall - sum(parts.values()))
    split = ", ".join(f"{name} {value:.1f} s ({value / wall:.0%})" for name, value in parts.items())
    whole = "in all" if resumed_at is None else f"since it was resumed at step {resumed_at:,}"
    return f"Time: {wall:.1f} s {whole}: {split}"


def _metrics_table(results: Mapping[str, Episodes], references: Mapping[str, Episodes]) -> list[str]:
    """The environment's metrics and measures, a row each; nothing where it has none."""
    named = {**{f"learned, {policy}": episodes for policy, episodes in results.items()}, **references}
    columns = [
        {name: float(values.mean()) for name, values in episodes.metrics.items()} | episodes.measures
        for episodes in named.values()
    ]
    rows = dict.fromkeys(name for column in columns for name in column)
    if not rows:
        return []
    cells = {name: [f"{column[name]:.4g}" if name in column else "" for column in columns] for name in rows}
    return [
        "",
        "Metrics of the environment (means over the same episodes)",
        "",
        f"| metric | {' | '.join(named)} |",
        "|---|" + "---|" * len(named),
        *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items()),
    ]


def _stem(tag: str) -> str:
    return tag.removeprefix("media/").replace("/", "_")


def _chains(scenario: Scenario, folder: Path, media: Path) -> list[Path]:
    """A figure a learner whose policy has a chain."""
    files = []
    updates = read_chains(folder)
    for learner in dict.fromkeys(update.learner for update in updates):
        own = [update for update in updates if update.learner == learner]
        figure = chain_figure(own, title=f"{scenario.name}, seed {scenario.seed}: updates of {learner} by chain step")
        files.append(media / f"chain_{learner.replace('/', '_')}.png")
        save_figure(figure, files[-1])
    return files


def _learning_curve(scenario: Scenario, folder: Path, references: Mapping[str, Episodes], how: str, path: Path) -> Path:
    steps, values = read_scalars(folder, "eval/iqm")
    _, low = read_scalars(folder, "eval/ci_low")
    _, high = read_scalars(folder, "eval/ci_high")
    evaluation = scenario.evaluation
    # Over other episodes the end may lie apart from the rest for that alone: then it is a point, not the line's end.
    apart = evaluation.episodes != evaluation.final_episodes and len(steps) > 1
    kept = slice(None, -1 if apart else None)
    many = f"{evaluation.episodes} episodes" if apart else "episodes"
    label = f"{evaluation.policies[0]} actions, IQM and 95 % CI over {many}"
    label += " (dashed: IQM of references)" if references else ""
    curves = [Curve(label, steps[kept], values[kept], low[kept], high[kept])]
    if apart:
        curves.append(Curve(f"the end, over {evaluation.final_episodes}", steps[-1:], values[-1:], low[-1:], high[-1:]))
    figure = learning_curve_figure(
        curves,
        # The curve's own statistic: a mean beside an IQM would compare two things.
        references={
            name: summarise(episodes.returns, seed=scenario.evaluation.seed).iqm
            for name, episodes in references.items()
        },
        title=f"{scenario.name}, seed {scenario.seed}",
        ylabel=f"return ({how})",
    )
    save_figure(figure, path)
    return path
