import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata as hparams_metadata

from marl_tr.analysis.video import VideoError
from marl_tr.events import Event, Phase
from marl_tr.events.tensorboard import TensorBoardSink, flatten, layout, markdown_table


def read(folder: Path) -> Any:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def frames(count: int = 4, height: int = 21, width: int = 33) -> np.ndarray[Any, Any]:
    video = np.zeros((count, height, width, 3), np.uint8)
    for index in range(count):
        video[index, :, : 5 + 5 * index] = (200, 30, 40)
    return video


def test_everything_of_an_event_is_read_back_at_its_step(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, fps=5)
    image = np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    sink.write(Event(64, Phase.TRAIN, {"charts/episodic_return": 0.5, "losses/value_loss": np.float32(2)}))
    sink.write(
        Event(
            128,
            Phase.EVAL,
            {"charts/episodic_return": float("inf")},
            images={"media/tracks": image},
            videos={"media/flight": frames()},
            texts={"notes": "**bold**"},
        )
    )
    assert sink.position() == {}
    # Flushed, not closed: what a reader sees while the run goes on.
    events = read(tmp_path)
    sink.close()
    returns = [(e.step, e.value) for e in events.Scalars("charts/episodic_return")]
    assert returns == [(64, 0.5), (128, float("inf"))]
    (shown,) = events.Images("media/tracks")
    assert shown.step == 128
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), image)
    (note,) = events.Tensors("notes/text_summary")
    assert (note.step, note.tensor_proto.string_val[0]) == (128, b"**bold**")

    (video,) = events.Images("media/flight")
    assert (video.step, video.width, video.height) == (128, 33, 21)
    gif = Image.open(io.BytesIO(video.encoded_image_string))
    assert (gif.format, gif.n_frames, gif.size, gif.info["duration"]) == ("GIF", 4, (33, 21), 200)


def test_hyperparameters_are_in_the_one_event_file(tmp_path: Path) -> None:
    scenario = {"name": "quick", "seed": 3, "trainer": {"anneal": True, "hidden": [64, 64], "bound": None}}
    sink = TensorBoardSink(tmp_path, hyperparameters=scenario)
    sink.write(Event(10, Phase.FINAL, {"eval/iqm": 1.0}))
    sink.close()
    assert len(list(tmp_path.iterdir())) == 1
    events = read(tmp_path)
    content = events.summary_metadata
    start = hparams_metadata.parse_session_start_info_plugin_data(
        content[hparams_metadata.SESSION_START_INFO_TAG].plugin_data.content
    )
    assert start.hparams["name"].string_value == "quick"
    assert start.hparams["seed"].number_value == 3
    assert start.hparams["trainer.anneal"].string_value == "true"
    assert start.hparams["trainer.hidden"].string_value == "[64, 64]"
    assert "trainer.bound" not in start.hparams
    experiment = hparams_metadata.parse_experiment_plugin_data(
        content[hparams_metadata.EXPERIMENT_TAG].plugin_data.content
    )
    assert next(metric.name.tag for metric in experiment.metric_infos) == "eval/iqm"
    assert hparams_metadata.SESSION_END_INFO_TAG in content
    table = events.Tensors("scenario/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| trainer.hidden | [64, 64] |" in table


def test_an_interrupted_run_is_not_marked_as_ended(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, hyperparameters={"seed": 1})
    sink.write(Event(10, Phase.TRAIN, {"x": 1.0}))
    sink.close()
    assert hparams_metadata.SESSION_END_INFO_TAG not in read(tmp_path).summary_metadata


def test_each_learner_has_one_chart_of_divergence_and_bound(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, learners=["uav_1", "uav_10"])
    sink.close()
    written = Layout()
    written.ParseFromString(read(tmp_path).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    region, evaluation, _ = written.category
    assert [chart.title for chart in region.chart] == ["uav_1", "uav_10"]
    (series,) = evaluation.chart[0].margin.series
    assert (series.value, series.lower, series.upper) == ("eval/iqm", "eval/ci_low", "eval/ci_high")


def test_ways_of_acting_are_on_one_chart_a_metric(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    names = ["eval/iqm", "eval/sampled/jain", "eval/mode/jain", "eval/mode/kl/a", "env/jain"]
    sink.write(Event(0, Phase.EVAL, dict.fromkeys(names, 1.0)))
    sink.write(Event(9, Phase.EVAL, {"eval/mode/late": 1.0}))
    sink.close()
    (config,) = read(tmp_path).Tensors("custom_scalars__config__")
    (part,) = (c for c in Layout.FromString(config.tensor_proto.string_val[0]).category if "acting" in c.title)
    charts = {chart.title: chart.multiline.tag for chart in part.chart}
    assert list(charts) == ["jain", "kl/a"]
    tags = [*names, "eval/mode/jains"]
    shown = {name: [t for t in tags if re.match("|".join(charts[name]), t)] for name in charts}
    assert shown == {"jain": names[1:3], "kl/a": names[3:4]}


@pytest.mark.parametrize("learner", ["uav_1", "a.b", "x (y)", "group/uav"])
def test_a_learners_chart_shows_its_tags_and_no_others(learner: str) -> None:
    (chart,) = layout([learner])["trust region: divergence and its bound"].values()
    names = (learner, f"{learner}0", f"other/{learner}")
    tags = [f"region/{what}/{name}" for what in ("divergence", "bound", "accepted") for name in names]
    # TensorBoard matches the way re.match does, with all the chart's expressions joined.
    shown = [tag for tag in tags if re.match("|".join(f"({expression})" for expression in chart[1]), tag)]
    assert shown == [f"region/divergence/{learner}", f"region/bound/{learner}"]


def test_a_resume_hides_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    first = TensorBoardSink(tmp_path, hyperparameters={"seed": 1}, learners=["a"])
    for step in range(0, 100, 10):
        first.write(Event(step, Phase.TRAIN, {"x": 1.0}))
    first.close()
    # Files are read in the order of their names, which begin with the second they were opened in; a run that is resumed
    # takes longer than that to start, this test does not.
    (file,) = tmp_path.glob("events.out.tfevents.*")
    *prefix, second, rest = file.name.split(".", 4)
    file.rename(file.with_name(".".join([*prefix, f"{int(second) - 1:010}", rest])))
    resumed = TensorBoardSink(tmp_path, hyperparameters={"seed": 1}, learners=["a"], purge_step=50 + 1)
    for step in range(60, 80, 10):
        resumed.write(Event(step, Phase.TRAIN, {"x": 2.0}))
    resumed.write(Event(80, Phase.FINAL))
    resumed.close()
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("x")] == [
        *((step, 1.0) for step in range(0, 60, 10)),
        (60, 2.0),
        (70, 2.0),
    ]
    assert hparams_metadata.SESSION_START_INFO_TAG in events.summary_metadata
    assert hparams_metadata.SESSION_END_INFO_TAG in events.summary_metadata
    assert len(events.Tensors("scenario/text_summary")) == 1
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_wrong_pictures_are_named(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    with pytest.raises(ValueError, match="media/map"):
        sink.write(Event(0, Phase.EVAL, images={"media/map": np.zeros((4, 4), np.uint8)}))
    with pytest.raises(VideoError, match="float64"):
        sink.write(Event(0, Phase.EVAL, videos={"media/v": np.zeros((2, 4, 4, 3))}))
    sink.close()


def test_flatten_names_entries_of_lists_of_sections() -> None:
    nested = {"agents": [{"kind": "matr", "hidden": ()}, {"kind": "gaussian"}], "empty": {}, "lr": 1e-3}
    assert flatten(nested) == {
        "agents.0.kind": "matr",
        "agents.0.hidden": "[]",
        "agents.1.kind": "gaussian",
        "lr": 0.001,
    }


def test_markdown_table_keeps_bars_and_line_breaks_inside_a_cell() -> None:
    table = markdown_table({"steps": 640_000.0, "description": "a|b\nc"})
    assert table.splitlines() == [
        "| setting | value |",
        "|---|---|",
        "| steps | 640000 |",
        "| description | a\\|b c |",
    ]


def test_the_layout_draws_each_regulariser_with_its_bound_by_learner() -> None:
    charts = layout(["uav_1", "uav_10"], ["anchor", "anchor_2"])
    (first, second) = (charts[f"regulariser {term!r}: divergence and its bound"] for term in ("anchor", "anchor_2"))
    patterns = first["uav_1"][1]
    tags = [f"region/{name}/{who}" for name in ("kl_anchor", "kl_anchor_bound", "kl_anchor_2") for who in first]
    drawn = [tag for tag in tags if any(re.search(pattern, tag) for pattern in patterns)]
    assert drawn == ["region/kl_anchor/uav_1", "region/kl_anchor_bound/uav_1"]
    assert set(second) == {"uav_1", "uav_10"}
    assert set(layout(["uav_1"])) < set(layout(["uav_1"], ["step"]))
