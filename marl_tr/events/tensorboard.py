"""The TensorBoard sink: one event file a process, everything over environment steps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.analysis.video import encode_gif
from marl_tr.events.stream import Event, Phase

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardSink", "flatten", "layout", "markdown_table", "scored"]

_HPARAM_METRICS = ("eval/iqm", "charts/episodic_return")
_PERF = r"^perf/.*_s$"


class TensorBoardSink:
    """Writes scalars, pictures, videos (as animated GIFs) and texts to ``events.out.tfevents.*``.

    From the first moment the file also holds the scenario as hyper-parameters (HPARAMS tab) and as a Markdown
    table (TEXT tab); from the first evaluation a layout (CUSTOM SCALARS tab) with each learner's divergence and bound
    on one chart, and on one chart what each way of acting scored by each metric.

    Args:
        run_dir: The run's folder.
        learners: Names in the tags ``region/divergence/<learner>`` and ``region/bound/<learner>``.
        terms: Regularisers, in the tags ``region/kl_<term>/<learner>`` and ``region/kl_<term>_bound/<learner>``.
        hyperparameters: The scenario, nested; written once, when the run begins.
        purge_step: For a resumed run: points at this step or later in older event files are hidden. Points at
            the checkpoint's own step were written before it, so this is the checkpoint's step + 1.
        fps: Frames a second of videos.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        learners: Sequence[str] = (),
        terms: Sequence[str] = (),
        hyperparameters: Mapping[str, Any] | None = None,
        purge_step: int | None = None,
        fps: float = 10.0,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # 5 s to import

        self._writer: SummaryWriter = SummaryWriter(str(run_dir), purge_step=purge_step)
        self._fps = fps
        self._ended: Any = None
        # A resumed run has them in its first file; TensorBoard reads all files of a folder as one run.
        self._laid_out = purge_step is not None
        self._learners, self._terms = tuple(learners), tuple(terms)
        self._write_hyperparameters(flatten(hyperparameters or {}), begins=purge_step is None)
        self._writer.flush()

    def write(self, event: Event) -> None:
        """Write all that `event` holds at its step.

        Raises:
            ValueError: A picture is not ``[H, W, 3]`` uint8; names its tag.
            VideoError: A video is not ``[T, H, W, 3]`` uint8.
        """
        for tag, value in event.scalars.items():
            self._writer.add_scalar(tag, float(value), event.step)
        for tag, image in event.images.items():
            if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
                raise ValueError(f"image {tag!r} must be [H, W, 3] uint8, not {list(image.shape)} {image.dtype}")
            self._writer.add_image(tag, image, event.step, dataformats="HWC")
        for tag, video in event.videos.items():
            self._write_video(tag, video, event.step)
        for tag, text in event.texts.items():
            self._writer.add_text(tag, text, event.step)
        if event.phase in (Phase.EVAL, Phase.FINAL):
            self._lay_out(event.scalars)
        if event.phase is Phase.FINAL and self._ended is not None:
            self._file.add_summary(self._ended)
            self._ended = None

    def position(self) -> dict[str, int]:
        """Flush. No offset: on a resume `purge_step` hides what came later, no event file is cut."""
        self._writer.flush()
        return {}

    def close(self) -> None:
        """Flush and close the event file."""
        self._lay_out({})
        self._writer.close()

    @property
    def _file(self) -> Any:
        return self._writer._get_file_writer()

    def _lay_out(self, scalars: Mapping[str, float]) -> None:
        """Once a run: TensorBoard reads one layout."""
        if not self._laid_out:
            self._writer.add_custom_scalars(layout(self._learners, self._terms, scored(scalars)))
            self._laid_out = True

    def _write_hyperparameters(self, flat: Mapping[str, float | str], *, begins: bool) -> None:
        """Write what `SummaryWriter.add_hparams` would write to an event file and run of its own."""
        if not flat:
            return
        from torch.utils.tensorboard.summary import hparams

        experiment, start, self._ended = hparams(dict(flat), dict.fromkeys(_HPARAM_METRICS, 0.0))
        if begins:
            self._file.add_summary(experiment)
            self._file.add_summary(start)
            self._writer.add_text("scenario", markdown_table(flat), 0)

    def _write_video(self, tag: str, frames: NDArray[Any], step: int) -> None:
        """What `SummaryWriter.add_video` writes, without its dependency on moviepy."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        gif = encode_gif(frames, self._fps)
        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._file.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def layout(
    learners: Sequence[str], terms: Sequence[str] = (), metrics: Sequence[str] = ()
) -> dict[str, dict[str, list[Any]]]:
    """Charts of the CUSTOM SCALARS tab, as `SummaryWriter.add_custom_scalars` takes them.

    Args:
        learners: A chart each for the region and every regulariser.
        terms: Regularisers.
        metrics: Last parts of the tags ``eval/<way of acting>/<metric>``, a chart each.

    The tags of a 'Multiline' chart are regular expressions, so they are anchored: ``uav_1`` is not
    ``uav_10``.
    """
    charts: dict[str, dict[str, list[Any]]] = {}
    if learners:
        charts["trust region: divergence and its bound"] = {
            learner: [
                "Multiline",
                [f"^{re.escape(f'region/{quantity}/{learner}')}$" for quantity in ("divergence", "bound")],
            ]
            for learner in learners
        }
    for term in terms:
        charts[f"regulariser {term!r}: divergence and its bound"] = {
            learner: [
                "Multiline",
                [f"^{re.escape(f'region/kl_{term}{part}/{learner}')}$" for part in ("", "_bound")],
            ]
            for learner in learners
        }
    charts["evaluation"] = {
        "return: interquartile mean, 95 % interval": ["Margin", ["eval/iqm", "eval/ci_low", "eval/ci_high"]]
    }
    if metrics:
        charts["evaluation, by way of acting"] = {
            metric: ["Multiline", [f"^eval/[^/]+/{re.escape(metric)}$"]] for metric in metrics
        }
    charts["time"] = {"seconds an iteration": ["Multiline", [_PERF]]}
    return charts


def scored(scalars: Mapping[str, float]) -> list[str]:
    """The metrics in the tags ``eval/<way of acting>/<metric>``, in their order, each once."""
    parts = (tag.split("/", 2) for tag in scalars)
    ways = (part for part in parts if part[0] == "eval" and len(part) == 3 and not part[1].startswith("vs_"))
    return list(dict.fromkeys(part[2] for part in ways))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """``{"trainer.num_envs": 64.0, ...}``: numbers stay numbers, lists become JSON, None is left out."""
    flat: dict[str, float | str] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            flat.update(flatten({str(index): item for index, item in enumerate(value)}, f"{name}."))
        elif isinstance(value, bool):
            flat[name] = str(value).lower()
        elif isinstance(value, int | float):
            flat[name] = float(value)
        elif isinstance(value, str):
            flat[name] = str(value)
        elif value is not None:
            flat[name] = json.dumps(value, default=str)
    return flat


def markdown_table(flat: Mapping[str, float | str]) -> str:
    """A Markdown table of names and values."""
    rows = [
        f"| {name} | {format(value, '.12g') if isinstance(value, float) else _escape(value)} |"
        for name, value in flat.items()
    ]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
