"""Figures of few and of many variants: every one of them can be told from the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from marl_tr.analysis.compare_figures import MOST, Panel, panels_figure
from marl_tr.analysis.plots import Curve, save_figure


def figure_of(variants: int, *, tasks: int = 1, reference: str | None = "v0") -> tuple[Figure, list[str]]:
    labels = [f"v{k}" for k in range(variants)]
    steps = np.arange(5) * 100
    curves = [
        Curve(v, steps, steps + 10.0 * k, steps + 10.0 * k - 5, steps + 10.0 * k + 5) for k, v in enumerate(labels)
    ]
    panels = [Panel(f"task {t}", curves, "return", threshold=300.0) for t in range(tasks)]
    return panels_figure(panels, labels=labels, title="sweep", xlabel="steps", reference=reference), labels


def shown(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.get_axes() if axes.get_visible()]


def test_few_variants_share_axes_and_a_legend() -> None:
    figure, labels = figure_of(MOST, tasks=2)
    assert shown(figure) == ["task 0", "task 1"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == labels


def test_of_many_variants_each_has_axes_of_its_own_beside_all_others(tmp_path: Path) -> None:
    figure, labels = figure_of(MOST + 4, tasks=2)
    assert shown(figure) == [*labels, *labels]
    assert not figure.legends
    for number, axes in enumerate(axes for axes in figure.get_axes() if axes.get_visible()):
        curves = [line for line in axes.get_lines() if len(np.asarray(line.get_xdata())) == 5]
        bold = max(curves, key=lambda line: line.get_linewidth())
        own = number % len(labels)
        assert bold.get_ydata()[0] == 10.0 * own
        assert len(curves) == len(labels)
        black = [line for line in curves if to_hex(line.get_color()) == "#000000"]
        assert [line.get_ydata()[0] for line in black] == ([] if own == 0 else [0.0])
    grid = [axes for axes in figure.get_axes() if axes.get_visible()][: len(labels)]
    numbered = [axes.xaxis.get_major_ticks()[0].label1.get_visible() for axes in grid]
    assert numbered == [False] * (len(labels) - 5) + [True] * 5, "the lowest axes of each column have numbers"
    save_figure(figure, tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 10_000


@pytest.mark.parametrize("variants", [2, MOST + 1])
def test_a_curve_that_no_label_announces_is_an_error(variants: int) -> None:
    _, labels = figure_of(variants)
    curve = Curve("other", np.arange(2), np.arange(2.0))
    curves = [Curve(v, np.arange(2), np.arange(2.0)) for v in labels]
    with pytest.raises(ValueError, match="'other' is not one of v0"):
        panels_figure([Panel("task", [*curves, curve], "return")], labels=labels, title="", xlabel="")
