"""``marl-tr pretrain``: flow matching with a log, a checkpoint to go on from, and one file at the end."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from marl_tr.errors import Diverged, Interrupted, UserError
from marl_tr.events.strict_json import dumps
from marl_tr.nn.flow_matching import ode_samples
from marl_tr.nn.velocity import build_velocity, event_shape
from marl_tr.scenario import resolved
from marl_tr.scenario.schema import AgentPart, PretrainingSection, Scenario
from marl_tr.scenario.velocity import MlpVelocityConfig, ResidualVelocityConfig, TransformerVelocityConfig
from marl_tr.trainer.build import build_env, device_of
from marl_tr.trainer.checkpoint import CheckpointError, expect, load_checkpoint, save_checkpoint
from marl_tr.trainer.lock import locked
from marl_tr.trainer.pretraining import Demonstrations, Pretraining
from marl_tr.trainer.seeding import make_generator
from marl_tr.trainer.stopping import stop_request
from marl_tr.vector.contract import GroupSpec

__all__ = ["Measure", "Pretrained", "checkpoint_of", "log_of", "pretrain", "pretrain_scenario"]

Measure = Callable[[Tensor, Mapping[str, Tensor]], Mapping[str, float]]
"""``(samples [B, *event], {leaf: [B, ...]}) -> {name: value}``, an environment's."""

MEASURED, MEASURE_STEPS = 128, 20
"""Samples that measures see, and the Euler steps that make them."""


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining ended with.

    Attributes:
        velocity: The averaged network.
        steps: Optimizer steps.
        loss: Mean since the line before the last of the log.
        measures: The environment's, of the averaged network's samples.
        seconds: Spent, over all resumed parts.
    """

    velocity: nn.Module
    steps: int
    loss: float
    measures: Mapping[str, float]
    seconds: float


def pretrain_scenario(
    scenario: Scenario,
    *,
    out: Path | None = None,
    resume: bool = False,
    half: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Train the network of the scenario's flow on its environment's data; returns the file of the averaged weights.

    Args:
        scenario: Its first agents entry with a `network` says which; its `pretraining` how.
        out: The file; by default ``<runs_dir>/<name>/pretrain-seed<seed>/velocity.safetensors``. The log and the
            checkpoint lie beside it.
        resume: Go on from the checkpoint.
        half: Store float16. The final measures are those of the rounded weights.
        say: Takes a line for the reader.

    Raises:
        UserError: The scenario, its environment or its network does not lend itself to it, or see `pretrain`.
        Diverged: See `pretrain`.
        Interrupted: See `pretrain`.
    """
    settings = scenario.pretraining
    if settings is None:
        raise UserError("the scenario says nothing about pretraining; give it a section 'pretraining:'")
    folder = Path(scenario.trainer.runs_dir) / scenario.name / f"pretrain-seed{scenario.seed}"
    out = folder / "velocity.safetensors" if out is None else out
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: the name must end in .safetensors")
    torch.set_num_threads(scenario.trainer.threads)
    env = build_env(scenario, num_envs=1)
    try:
        part, group = _flow(scenario, env.spec.groups)
        demonstrations, group = _demonstrations(env, scenario, group)
        velocity = _network(scenario, part, group)
        measure: Measure | None = getattr(env, "measure", None)
        say(f"{sum(p.numel() for p in velocity.parameters()):,} parameters, {settings.steps:,} steps; {log_of(out)}")
        with _prepared(out), stop_request("--resume goes on from it") as stop:
            done = pretrain(
                velocity,
                demonstrations,
                settings,
                out=out,
                seed=scenario.seed,
                measure=measure,
                identity={"env": _description(scenario), "network": part.config.network.model_dump(mode="json")},
                resume=resume,
                stop=stop,
                say=say,
            )
            _write(out, scenario, done, demonstrations, measure, half=half)
    finally:
        env.close()
    say(f"averaged weights: {out} ({out.stat().st_size:,} bytes)")
    return out


def pretrain(
    velocity: nn.Module,
    demonstrations: Demonstrations,
    settings: PretrainingSection,
    *,
    out: Path,
    seed: int,
    measure: Measure | None = None,
    identity: Mapping[str, Any] | None = None,
    resume: bool = False,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = print,
) -> Pretrained:
    """Train `velocity` to the end of `settings`, with a log and a checkpoint beside `out`.

    Args:
        velocity: The network, on its device; trained in place.
        demonstrations: Where the data comes from.
        settings: How, and how long.
        out: Names the log and the checkpoint; the averaged weights themselves are the caller's to write.
        seed: Every random number follows from it, but for those of the measures, which are always the same.
        measure: Called at each line of the log with samples of the averaged network.
        identity: What must be the same when it is resumed, besides seed and settings.
        resume: Go on from the checkpoint; on a CPU the outcome equals the uninterrupted one's bit for bit.
        stop: Set from outside to save and stop after the step.
        say: Takes a line for the reader.

    Raises:
        UserError: There is a checkpoint already, or none to resume, or it is of something else.
        Diverged: Something became non-finite; the last checkpoint is kept.
        Interrupted: After saving.
    """
    training = Pretraining(velocity, demonstrations, settings, generator=make_generator(seed, "pretrain/data"))
    session = _Session(
        training,
        settings,
        out,
        {"seed": seed, **(identity or {})},
        lambda: measured(training.average, demonstrations, measure, shift=settings.shift),
        say,
    )
    session.resume() if resume else session.begin()
    while training.step < settings.steps:
        session.advance()
        if stop is not None and stop.is_set() and training.step < settings.steps:
            session.save()
            raise Interrupted(f"saved at step {training.step:,}; go on with the same command and --resume")
    return session.end()


def measured(
    velocity: nn.Module, demonstrations: Demonstrations, measure: Measure | None, *, shift: float
) -> dict[str, float]:
    """The environment's measures of samples of `velocity`, from the same conditions and noise every time."""
    if measure is None:
        return {}
    generator = make_generator(0, "pretrain/measure")
    device = next(velocity.parameters()).device
    observation, data = demonstrations(MEASURED, generator)
    noise = torch.randn(data.shape, generator=generator)
    condition = {leaf: values.to(device) for leaf, values in observation.items()}
    samples = ode_samples(velocity, noise.to(device), condition, steps=MEASURE_STEPS, shift=shift)
    return {name: float(value) for name, value in measure(samples.cpu(), observation).items()}


def checkpoint_of(out: Path) -> Path:
    """Where the state of the pretraining that writes `out` is kept."""
    return out.with_name(f"{out.stem}.checkpoint.safetensors")


def log_of(out: Path) -> Path:
    """Where its progress is written, one JSON object a line."""
    return out.with_name(f"{out.stem}.jsonl")


class _Session:
    """A pretraining with its files."""

    def __init__(
        self,
        training: Pretraining,
        settings: PretrainingSection,
        out: Path,
        identity: Mapping[str, Any],
        measures: Callable[[], Mapping[str, float]],
        say: Callable[[str], None],
    ) -> None:
        self._checkpoint, self._log = checkpoint_of(out), log_of(out)
        # When it saves is no part of what it computes.
        self._identity = {**identity, "settings": settings.model_dump(mode="json", exclude={"save_every"})}
        self._training, self._settings, self._measures, self._say = training, settings, measures, say
        self._losses: list[float] = []
        self._last: dict[str, Any] = {}
        self._before, self._began = 0.0, time.perf_counter()

    def begin(self) -> None:
        """Start an empty log, unless there is something that could be resumed."""
        if self._checkpoint.exists():
            raise UserError(
                f"{self._checkpoint} is of a pretraining that has begun; go on with --resume, delete it, or give "
                "another --out"
            )
        self._write_log("")

    def resume(self) -> None:
        """Go on from the checkpoint, and cut the log to it."""
        state = load_checkpoint(self._checkpoint)
        saved, now = expect(state, "identity", dict), self._identity
        changed = sorted(key for key in {*saved, *now} if saved.get(key) != now.get(key))
        if changed:
            told = ", ".join(f"{key} was {saved.get(key)!r} and is {now.get(key)!r}" for key in changed)
            raise CheckpointError(f"{self._checkpoint} is of another pretraining: {told}")
        try:
            self._training.load_state_dict(expect(state, "training", dict))
        except CheckpointError as error:
            raise CheckpointError(f"{self._checkpoint}: {error}") from error
        self._losses, self._last = list(expect(state, "losses", list)), dict(expect(state, "last", dict))
        self._before, self._began = expect(state, "seconds", float), time.perf_counter()
        self._write_log(expect(state, "log", str))

    def advance(self) -> None:
        """A step; at its turn also a line of the log and a checkpoint."""
        training, settings = self._training, self._settings
        try:
            self._losses.append(training.advance())
        except Diverged as error:
            good = self._checkpoint if self._checkpoint.exists() else "none yet"
            raise Diverged(f"{error}\nlast good checkpoint: {good}") from error
        if training.step % settings.save_every == 0 or training.step == settings.steps:
            self._report()
            self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "identity": self._identity,
            "training": self._training.state_dict(),
            "losses": self._losses,
            "last": self._last,
            "seconds": self._seconds(),
            "log": self._log.read_text(encoding="utf-8"),
        }
        save_checkpoint(self._checkpoint, state)

    def end(self) -> Pretrained:
        """The outcome."""
        last = self._last
        return Pretrained(self._training.average, self._training.step, last["loss"], last["measures"], last["seconds"])

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def _report(self) -> None:
        loss = math.fsum(self._losses) / len(self._losses)
        self._losses = []
        measures = dict(self._measures())
        step, seconds = self._training.step, self._seconds()
        self._last = {"loss": loss, "measures": measures, "seconds": seconds}
        with self._log.open("a", encoding="utf-8") as file:
            file.write(dumps({"step": step, "loss": loss, "seconds": seconds, **measures}) + "\n")
        shown = "".join(f"  {name} {value:.4g}" for name, value in {"loss": loss, **measures}.items())
        self._say(f"step {step:,}/{self._settings.steps:,}{shown}  {seconds:,.0f} s")

    def _write_log(self, text: str) -> None:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._log.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self._log}: {error.strerror}") from error


def _flow(scenario: Scenario, groups: tuple[GroupSpec, ...]) -> tuple[AgentPart, GroupSpec]:
    """The first agents entry that is a flow, and the first group that it selects from."""
    kinds_of_velocity = (MlpVelocityConfig, ResidualVelocityConfig, TransformerVelocityConfig)
    flows = (part for part in scenario.agents if isinstance(getattr(part.config, "network", None), kinds_of_velocity))
    part = next(flows, None)
    if part is None:
        kinds = ", ".join(part.kind for part in scenario.agents)
        raise UserError(f"agents: of kinds {kinds}, none has a velocity network that could be pretrained")
    for group in groups:
        if any(fnmatchcase(agent, pattern) for agent in group.agents for pattern in part.select):
            return part, group
    raise UserError(f"agents: select {part.select} is left with no agent of the environment")


def _network(scenario: Scenario, part: AgentPart, group: GroupSpec) -> nn.Module:
    """Its network at its start, on its device; of a kind that a scenario can load again."""
    network = part.config.network
    if not isinstance(network, TransformerVelocityConfig):
        raise UserError(
            f"network.kind: 'marl-tr pretrain' writes transformers, and agents of kind {part.kind!r} have "
            f"{network.kind!r}"
        )
    if network.lora is not None:
        raise UserError("network.lora: pretraining trains all weights; leave the adapters to 'marl-tr run'")
    return build_velocity(network, group, make_generator(scenario.seed, "pretrain/start")).to(device_of(scenario))


def _demonstrations(env: Any, scenario: Scenario, group: GroupSpec) -> tuple[Demonstrations, GroupSpec]:
    """The environment's hook, whose outcome is checked, and `group` with the leaves that it gives."""
    hook = getattr(env, "demonstrations", None)
    if hook is None:
        raise UserError(
            f"env.id: {scenario.env.id!r} has no data to pretrain on; it would need a method "
            "demonstrations(count, generator) -> (observation, action)"
        )

    def demonstrate(count: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        given, data = hook(count, generator)
        observation, action = {leaf: torch.as_tensor(x) for leaf, x in given.items()}, torch.as_tensor(data)
        found = {leaf: list(x.shape) for leaf, x in observation.items()}
        # It need not give all: the latent and its level, which an environment may show, are the flow's own business.
        wanted = {leaf: [count, *(space.shape or ())] for leaf, space in group.observation.items() if leaf in found}
        event = [count, *event_shape(group)]
        if found != wanted or list(action.shape) != event:
            raise UserError(
                f"the demonstrations of {scenario.env.id!r} have observations of shapes {found} and actions "
                f"{list(action.shape)}; its agents observe {', '.join(group.observation)}, here {wanted}, and act in "
                f"{event}"
            )
        return observation, action

    first, _ = demonstrate(1, make_generator(0, "pretrain/leaves"))
    return demonstrate, replace(group, observation={leaf: group.observation[leaf] for leaf in first})


def _description(scenario: Scenario) -> dict[str, Any]:
    """Where the data comes from."""
    env = resolved(scenario)["env"]
    return {"id": env["id"], "config": env["config"]}


def _write(
    out: Path,
    scenario: Scenario,
    done: Pretrained,
    demonstrations: Demonstrations,
    measure: Measure | None,
    *,
    half: bool,
) -> None:
    """The averaged weights in one file that says where they come from."""
    from marl_tr.nn.velocity_files import save_velocity_file

    measures = done.measures
    if half:
        assert scenario.pretraining is not None
        for parameter in done.velocity.parameters():
            parameter.data = parameter.data.half().float()
        measures = measured(done.velocity, demonstrations, measure, shift=scenario.pretraining.shift)
    about = {
        "scenario": scenario.name,
        "scenario_sha256": hashlib.sha256(dumps(resolved(scenario), sort_keys=True).encode()).hexdigest(),
        "seed": scenario.seed,
        "steps": done.steps,
        "data": _description(scenario),
        "loss": done.loss,
        "measures": dict(measures),
        "seconds": done.seconds,
        "versions": {name: version(name) for name in ("marl-tr", "torch", "diffusers")},
    }
    save_velocity_file(out, done.velocity.transformer, about=about, half=half)


@contextmanager
def _prepared(out: Path) -> Iterator[None]:
    """The folder of `out`, held for this process."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        log_of(out).touch()
    except OSError as error:
        raise UserError(f"cannot write {log_of(out)}: {error.strerror}") from error
    with locked(out.parent, log_of(out).name):
        yield
