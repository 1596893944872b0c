import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from marl_tr.analysis.plots import Curve, figure_pixels, learning_curve_figure, save_figure
from marl_tr.analysis.video import VideoError, encode_gif, save_video, write_video
from marl_tr.errors import UserError


def frames(count: int = 6, height: int = 48, width: int = 64) -> np.ndarray[Any, Any]:
    """A white square that moves over a colour gradient."""
    video = np.zeros((count, height, width, 3), np.uint8)
    video[..., 0] = np.linspace(0, 255, width)
    video[..., 2] = np.linspace(255, 0, height)[:, None]
    for index in range(count):
        video[index, 10:20, 6 * index : 6 * index + 10] = 255
    return video


def test_a_gif_shows_the_frames_at_their_pace(tmp_path: Path) -> None:
    write_video(tmp_path / "new" / "flight.gif", frames(), fps=20)
    gif = Image.open(tmp_path / "new" / "flight.gif")
    assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (6, (64, 48), 50, 0)
    for index, frame in enumerate(frames()):
        gif.seek(index)
        shown = np.asarray(gif.convert("RGB")).astype(int)
        # 255 colours for a gradient of two hues: no pixel far off, and on average close.
        assert np.abs(shown - frame).mean() < 6
        assert np.abs(shown - frame).max() < 64


def test_still_areas_of_a_gif_do_not_flicker() -> None:
    gif = Image.open(io.BytesIO(encode_gif(frames())))
    shown = []
    for index in range(gif.n_frames):
        gif.seek(index)
        shown.append(np.asarray(gif.convert("RGB"))[30:])
    assert all(np.array_equal(shown[0], later) for later in shown)


def test_an_mp4_keeps_size_and_frames(tmp_path: Path) -> None:
    path = tmp_path / "flight.mp4"
    write_video(path, frames(12, 50, 70), fps=12)
    shown = imageio.imread(path, plugin="FFMPEG")
    assert shown.shape == (12, 50, 70, 3)
    assert np.abs(shown.astype(int) - frames(12, 50, 70)).mean() < 12
    assert imageio.immeta(path, plugin="FFMPEG")["fps"] == 12
    assert [p.name for p in tmp_path.iterdir()] == ["flight.mp4"]


@pytest.mark.parametrize(
    ("name", "video", "fps", "message"),
    [
        ("x.mp4", frames(height=47), 10, "64 x 47 pixels.*even width and height"),
        ("x.mp4", frames(width=63), 10, "63 x 48"),
        ("x.avi", frames(), 10, r"\.gif or \.mp4"),
        ("x.gif", frames()[..., :1], 10, r"\[6, 48, 64, 1\]"),
        ("x.gif", frames().astype(float), 10, "float64"),
        ("x.mp4", frames()[:0], 10, r"\[0, 48, 64, 3\]"),
        ("x.gif", frames(), 0, "frames a second"),
        ("x.gif", frames(), 60, "at most 50"),
    ],
)
def test_frames_that_make_no_video_are_refused(
    tmp_path: Path, name: str, video: np.ndarray[Any, Any], fps: float, message: str
) -> None:
    with pytest.raises(VideoError, match=message) as caught:
        write_video(tmp_path / name, video, fps=fps)
    assert isinstance(caught.value, UserError)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "x.gif").mkdir()
    with pytest.raises(VideoError, match=r"cannot write .*x\.gif"):
        write_video(tmp_path / "x.gif", frames())
    assert [p.name for p in tmp_path.iterdir()] == ["x.gif"]


def curve(label: str = "HATRPO") -> Curve:
    steps = np.arange(0, 640_001, 6400)
    values = 0.85 - 0.6 * np.exp(-steps / 150_000)
    return Curve(label, steps, values, values - 0.05, values + 0.05)


def test_a_learning_curve_is_saved_as_the_picture_that_is_logged(tmp_path: Path) -> None:
    def figure() -> Figure:
        return learning_curve_figure([curve()], references={"k-means": 0.718}, title="uav_quick")

    save_figure(figure(), tmp_path / "media" / "curve.png")
    saved = np.asarray(Image.open(tmp_path / "media" / "curve.png").convert("RGB"))
    logged = figure_pixels(figure())
    assert logged.dtype == np.uint8
    assert saved.shape == logged.shape
    assert np.array_equal(saved, logged)
    assert [p.name for p in (tmp_path / "media").iterdir()] == ["curve.png"]


def test_the_figure_holds_the_curves_bands_and_references() -> None:
    axes = learning_curve_figure(
        [curve("HATRPO"), curve("MAPPO")],
        references={"k-means, full power": 0.718, "hover": 0.7, "random": 0.2, "broken": float("nan")},
        ylabel="return (mean over agents, 100 steps)",
    ).axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "random 0.2",
        "hover 0.7",
        "k-means, full power 0.718",
    ]
    places = [text.xyann[1] for text in axes.texts]
    assert places[0] == 0.2, "a label that is alone stands at its line"
    assert np.diff(places).min() > 0.03, "labels do not overlap"
    assert len(axes.collections) == 2
    (legend,) = axes.figure.legends
    axes.figure.draw_without_rendering()
    assert legend.get_window_extent().y1 < axes.get_window_extent().y0, "the legend covers nothing"
    assert axes.get_ylabel() == "return (mean over agents, 100 steps)"
    low, high = axes.get_ylim()
    assert low < 0.2 < 0.9 < high
    assert np.array_equal(axes.lines[0].get_ydata(), curve().values)


def test_references_far_from_the_curves_are_named_and_do_not_flatten_them() -> None:
    steps, values = np.arange(5) * 100, np.linspace(-1.1, -0.7, 5)
    figure = learning_curve_figure(
        [Curve("ours", steps, values)], references={"data": 0.8, "noise": -49.9, "best": 9.0}
    )
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert -1.3 < low < -1.1
    assert 0.8 < high < 1.0
    assert sorted(text.get_text() for text in axes.texts) == ["best 9 ↑", "data 0.8", "noise -49.9 ↓"]
    places = {text.get_text(): text.xyann[1] for text in axes.texts}
    assert places["noise -49.9 ↓"] == pytest.approx(low, abs=0.1)
    assert places["best 9 ↑"] == pytest.approx(high, abs=0.2)
    assert len(axes.lines) == 2


def test_a_curve_of_one_point_or_without_a_band_is_drawn() -> None:
    point = Curve("start", np.array([0]), np.array([0.3]))
    figure = learning_curve_figure([point])
    assert figure.axes[0].lines[0].get_marker() == "o"
    assert figure_pixels(figure).std() > 0
    between = replace(point, low=np.array([0.2]), high=np.array([0.5]))
    (band,) = learning_curve_figure([between]).axes[0].collections
    assert band.get_segments()[0].tolist() == [[0, 0.2], [0, 0.5]]


def test_curves_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        learning_curve_figure([])
    for wrong in (
        Curve("short", np.arange(3), np.zeros(2)),
        Curve("short", np.arange(3), np.zeros(3), np.zeros(2), np.zeros(3)),
        Curve("short", np.arange(3), np.zeros(3), low=np.zeros(3)),
    ):
        with pytest.raises(ValueError, match="'short'"):
            learning_curve_figure([wrong])


@pytest.mark.parametrize(("name", "kind"), [("flight.gif", "GIF"), ("flight.mp4", None)])
def test_frames_one_by_one_are_saved_by_the_paths_suffix(name, kind, tmp_path):
    path = str(tmp_path / name)
    save_video(list(frames(6)), path, fps=5)
    assert imageio.imread(path).shape == (6, 48, 64, 3)
    if kind:
        assert Image.open(path).info["duration"] == 200


def test_frames_of_several_sizes_are_refused(tmp_path):
    with pytest.raises(VideoError, match="have one shape"):
        save_video([*frames(1), *frames(1, width=66)], tmp_path / "x.gif")
