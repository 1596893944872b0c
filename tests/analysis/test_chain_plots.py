"""Figures of chains: a panel a measure, a few updates in it, the later the darker."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from marl_tr.analysis.chain_plots import chain_figure
from marl_tr.analysis.curves import ChainUpdate
from marl_tr.analysis.plots import figure_pixels

NAMES = ("std", "weight", "log_ratio_mean", "log_ratio_std", "clip_fraction", "divergence", "kl_anchor", "own")


def update(step: int, *, length: int = 5, norms: bool = False, names: tuple[str, ...] = NAMES) -> ChainUpdate:
    measures = {name: np.linspace(0, step + place, length) for place, name in enumerate(names)}
    if norms:
        measures |= {"gradient_norm": np.geomspace(1, 1000, length), "gradient_norm_weighted": np.full(length, step)}
    return ChainUpdate(step=step, learner="point", measures=measures)


def panels(figure: Figure) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}


def test_every_measure_has_a_panel_with_its_values() -> None:
    shown = panels(chain_figure([update(7, norms=True)], title="one"))
    assert list(shown) == [
        "standard deviation of the noise",
        "weight in the objective",
        "log-ratio, new to old: mean",
        "log-ratio, new to old: std",
        "share of clipped ratios",
        "KL(old || new), nats",
        "KL(anchor || new), nats",
        "own",
        "gradient norm of a log-prob.",
    ]
    (line,) = shown["KL(anchor || new), nats"].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), np.linspace(0, 7 + NAMES.index("kl_anchor"), 5))
    raw, weighted = shown["gradient norm of a log-prob."].get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), np.geomspace(1, 1000, 5))
    np.testing.assert_array_equal(weighted.get_ydata(), np.full(5, 7.0))


def test_of_many_updates_four_are_drawn_the_first_and_the_last_among_them() -> None:
    updates = [update(step, norms=step == 8) for step in range(1, 11)]
    figure = chain_figure(updates)
    shown = panels(figure)
    lines = shown["KL(old || new), nats"].get_lines()
    assert [line.get_label() for line in lines] == [f"update at step {step}" for step in (1, 4, 7, 10)]
    darkness = [sum(int(line.get_color()[i : i + 2], 16) for i in (1, 3, 5)) for line in lines]
    assert darkness == sorted(darkness, reverse=True)
    # What does not change is drawn once; norms are those of the last update that has any.
    assert len(shown["standard deviation of the noise"].get_lines()) == 1
    assert len(shown["gradient norm of a log-prob., step 8"].get_lines()) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [line.get_label() for line in lines]


def test_figures_of_all_sizes_are_drawn() -> None:
    for names in (("divergence",), ("std", "weight"), NAMES):
        for length in (2, 40):
            pixels = figure_pixels(chain_figure([update(1, names=names, length=length)] * 2, title="t"))
            assert pixels.ndim == 3
            assert len(np.unique(pixels[..., 0])) > 10
    with pytest.raises(ValueError, match="at least one update"):
        chain_figure([])
