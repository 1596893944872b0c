"""Pretraining: it finds the velocity that is known, and stops, goes on and fails as it says."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from marl_tr.cli import main
from marl_tr.errors import Diverged, UserError
from marl_tr.nn.flow_matching import random_levels
from marl_tr.nn.velocity import build_velocity
from marl_tr.nn.velocity_files import load_velocity_file, velocity_file_info
from marl_tr.scenario.schema import PretrainingSection
from marl_tr.scenario.velocity import MlpVelocityConfig
from marl_tr.trainer.checkpoint import load_checkpoint
from marl_tr.trainer.pretrain import checkpoint_of, log_of, pretrain
from marl_tr.trainer.pretraining import Pretraining, share_of_rate
from marl_tr.vector.contract import GroupSpec

GROUP = GroupSpec("points", ("a",), {"goal": Box(-1, 1, (1,))}, {"action": Box(-9, 9, (2,))})
STD = torch.tensor([0.5, 0.2])


def demonstrations(count: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Points of a normal law around ``(goal, -goal)``."""
    goal = torch.randint(2, (count, 1), generator=generator) * 2.0 - 1
    return {"goal": goal}, torch.cat([goal, -goal], 1) + STD * torch.randn(count, 2, generator=generator)


def best_velocity(x: Tensor, sigma: Tensor, goal: Tensor) -> Tensor:
    """Its conditional mean of ``e - x0`` (normal laws: linear regression)."""
    s, mean = sigma.unsqueeze(1), torch.cat([goal, -goal], 1)
    variance = (1 - s) ** 2 * STD**2 + s**2
    return (s - (1 - s) * STD**2) / variance * (x - (1 - s) * mean) - mean


def network(hidden: int = 64) -> nn.Module:
    config = MlpVelocityConfig(hidden=[hidden, hidden], frequencies=4)
    return build_velocity(config, GROUP, torch.Generator().manual_seed(0))


def settings(**changes: float | str) -> PretrainingSection:
    return PretrainingSection.model_validate(
        {"steps": 12, "batch": 16, "save_every": 5, "ema": 0.9, "shift": 1.0} | changes
    )


def training(velocity: nn.Module, given: PretrainingSection, data=demonstrations) -> Pretraining:
    return Pretraining(velocity, data, given, generator=torch.Generator().manual_seed(1))


class TestLearning:
    def test_a_small_network_finds_the_velocity_that_is_known(self) -> None:
        given = settings(steps=1200, batch=256, learning_rate=3e-3, ema=0.99, drop_condition=0.0, weight_decay=0.0)
        run = training(network(), given)
        losses = [run.advance() for _ in range(given.steps)]
        generator = torch.Generator().manual_seed(9)
        observation, x0 = demonstrations(4000, generator)
        sigma = random_levels(4000, 1.0, generator)
        s = sigma.unsqueeze(1)
        x = (1 - s) * x0 + s * torch.randn(x0.shape, generator=generator)
        best = best_velocity(x, sigma, observation["goal"])
        with torch.no_grad():
            error = (run.average(x, sigma, observation) - best).square().mean()
        assert float(error) < 0.01 * float(best.square().mean())
        # The least loss: Var(e - x0 | x_s) = std^2 / Var(x_s).
        least = float((STD**2 / ((1 - s) ** 2 * STD**2 + s**2)).mean())
        assert math.fsum(losses[-200:]) / 200 == pytest.approx(least, rel=0.05)
        assert math.fsum(losses[:10]) / 10 > 1.5 * least

    def test_the_stated_share_of_samples_learns_without_a_condition(self) -> None:
        seen: list[Tensor] = []

        class Watching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(()))

            def forward(self, x: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
                seen.append(observation["goal"].squeeze(1))
                return self.weight * x

        run = training(Watching(), settings(batch=4000, drop_condition=0.3))
        run.advance()
        assert float((seen[0] == 0).float().mean()) == pytest.approx(0.3, abs=0.03)
        assert set(seen[0].tolist()) == {-1.0, 0.0, 1.0}

    def test_the_average_warms_up_and_then_decays_as_it_is_told(self) -> None:
        velocity = network(4)
        run = training(velocity, settings(ema=0.4))
        expected = velocity.body[0].weight.detach().double().clone()
        for step in range(12):
            run.advance()
            decay = min(0.4, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * velocity.body[0].weight.detach().double()
        torch.testing.assert_close(run.average.body[0].weight.double(), expected, atol=1e-6, rtol=1e-6)

    def test_the_learning_rate_rises_stays_and_falls_to_nothing(self) -> None:
        given = settings(steps=1000, decay=0.4)
        shares = [share_of_rate(step, given) for step in range(1000)]
        assert shares[0] == pytest.approx(1 / 20)
        assert shares[19:600] == [1.0] * 581
        assert shares[800] == pytest.approx(0.5)
        assert shares[999] == pytest.approx(1 / 400)
        assert share_of_rate(999, settings(steps=1000, decay=0.0)) == 1.0

    def test_muon_moves_the_matrices_of_numbered_layers_at_its_own_rate(self) -> None:
        velocity = network(8)
        before = {name: p.detach().clone() for name, p in velocity.named_parameters()}
        run = training(velocity, settings(optimizer="muon", muon_learning_rate=1e-9, learning_rate=1e-2))
        for _ in range(3):
            run.advance()
        moved = {name for name, p in velocity.named_parameters() if (p - before[name]).abs().max() > 1e-6}
        assert {name for name in before if name not in moved} == {"body.0.weight", "body.2.weight"}

    def test_a_step_takes_nothing_from_the_global_generator(self) -> None:
        before = torch.random.get_rng_state()
        training(network(8), settings()).advance()
        assert torch.equal(torch.random.get_rng_state(), before)


class TestFiles:
    @pytest.mark.parametrize("optimizer", ["adamw", "muon"])
    def test_a_resumed_pretraining_ends_bit_for_bit_as_the_uninterrupted_one(
        self, tmp_path: Path, optimizer: str
    ) -> None:
        given = settings(optimizer=optimizer)
        whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"

        def measure(samples: Tensor, observation: Mapping[str, Tensor]) -> dict[str, float]:
            return {"mean": float(samples.mean())}

        once = pretrain(network(8), demonstrations, given, out=whole, seed=4, measure=measure)
        stop = _StopAfter(7)
        with pytest.raises(Exception, match="saved at step 7"):
            pretrain(network(8), demonstrations, given, out=parts, seed=4, measure=measure, stop=stop)
        again = pretrain(network(8), demonstrations, given, out=parts, seed=4, measure=measure, resume=True)
        for a, b in zip(once.velocity.parameters(), again.velocity.parameters(), strict=True):
            assert torch.equal(a, b)
        assert (once.loss, once.measures) == (again.loss, again.measures)
        assert _lines(whole) == _lines(parts)
        assert [line["step"] for line in _lines(whole)] == [5, 10, 12]
        states = [load_checkpoint(checkpoint_of(out))["training"] for out in (whole, parts)]
        for a, b in zip(_leaves(states[0]), _leaves(states[1]), strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b

    def test_lines_that_were_written_after_the_checkpoint_are_cut(self, tmp_path: Path) -> None:
        out = tmp_path / "v.safetensors"
        pretrain(network(8), demonstrations, settings(), out=out, seed=4)
        log = log_of(out).read_text()
        log_of(out).write_text(log + '{"step":99}\n')
        pretrain(network(8), demonstrations, settings(), out=out, seed=4, resume=True)
        assert log_of(out).read_text() == log

    def test_another_seed_is_another_pretraining(self, tmp_path: Path) -> None:
        out = tmp_path / "v.safetensors"
        pretrain(network(8), demonstrations, settings(), out=out, seed=4)
        with pytest.raises(UserError, match="seed was 4 and is 5"):
            pretrain(network(8), demonstrations, settings(), out=out, seed=5, resume=True)
        with pytest.raises(UserError, match="steps"):
            pretrain(network(8), demonstrations, settings(steps=13), out=out, seed=4, resume=True)

    def test_a_network_of_another_size_is_refused(self, tmp_path: Path) -> None:
        out = tmp_path / "v.safetensors"
        pretrain(network(8), demonstrations, settings(), out=out, seed=4)
        with pytest.raises(UserError, match=r"v\.checkpoint\.safetensors.*size mismatch"):
            pretrain(network(9), demonstrations, settings(), out=out, seed=4, resume=True)

    def test_data_that_is_not_finite_ends_it_and_leaves_the_last_checkpoint(self, tmp_path: Path) -> None:
        out, calls = tmp_path / "v.safetensors", [0]

        def poisoned(count: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
            calls[0] += 1
            observation, data = demonstrations(count, generator)
            return observation, data * (math.nan if calls[0] == 8 else 1)

        with pytest.raises(Diverged, match=r"(?s)step 8.*last good checkpoint: .*v\.checkpoint\.safetensors"):
            pretrain(network(8), poisoned, settings(), out=out, seed=4)
        state = load_checkpoint(checkpoint_of(out))["training"]
        assert state["step"] == 5
        assert all(x.isfinite().all() for x in state["velocity"].values())


class _StopAfter:
    """Stands for an event that is set during the step of that number."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def _lines(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in log_of(out).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    if isinstance(tree, list | tuple):
        return [leaf for value in tree for leaf in _leaves(value)]
    return [] if tree is None else [tree]


TOY = """
import os
import signal

import numpy as np
import torch
from gymnasium.spaces import Box

from marl_tr.scenario.velocity import MlpVelocityConfig, VelocityConfig
from marl_tr.registry import Entry
from marl_tr.scenario.schema import Strict
from marl_tr.vector.contract import EnvSpec, GroupSpec

calls = 0


class AgentConfig(Strict):
    network: VelocityConfig = MlpVelocityConfig()


AGENT = Entry(target="toy:no_policy", config=AgentConfig)


class Clips:
    def __init__(self, num_envs, interrupt_at=0, wrong=False):
        self.interrupt_at, self.wrong = interrupt_at, wrong
        leaves = {"tokens": Box(-9, 9, (1, 4)), "sigma": Box(0, 1, (2,))}
        group = GroupSpec("clips", ("painter",), leaves, {"action": Box(-9, 9, (1, 2, 4, 4))})
        self.spec = EnvSpec("toy", num_envs, (group,))

    def reset(self, seed): ...
    def step(self, actions): ...
    def state_dict(self): ...
    def load_state_dict(self, state): ...
    def close(self): ...


class Taught(Clips):
    def demonstrations(self, count, generator):
        global calls
        calls += 1
        if calls == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        tokens = torch.randn(count, 1, 4, generator=generator)
        clips = tokens[:, :, 0].view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 4, 4 + self.wrong)
        return {"tokens": tokens.numpy()}, clips

    def measure(self, samples, observation):
        return {"error": float((samples.mean((1, 2, 3, 4)) - observation["tokens"][:, 0, 0]).square().mean())}


CLIPS = Entry(target=Clips, native=True)
TAUGHT = Entry(target=Taught, native=True)
"""

SCENARIO = """
name: toy
preset: mappo
seed: 3
env: {id: 'toy:TAUGHT', num_envs: 2}
agents:
  kind: toy:AGENT
  network:
    kind: transformer
    arguments: {patch_size: [1, 2, 2], num_attention_heads: 1, attention_head_dim: 12, in_channels: 1, out_channels: 1,
      text_dim: 4, freq_dim: 8, ffn_dim: 8, num_layers: 1, rope_max_seq_len: 8}
optimizer: {}
trainer: {total_steps: 4, rollout_steps: 2}
pretraining: {steps: 6, batch: 4, save_every: 2, learning_rate: 0.01}
"""

Pretrain = Callable[..., int]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretrain:
    """``marl-tr pretrain`` with the toy scenario and further arguments, in a folder of its own."""
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "toy.yaml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    return lambda *arguments: main(["pretrain", "toy.yaml", *arguments])


class TestCommand:
    def test_it_writes_the_averaged_weights_and_where_they_come_from(
        self, toy: Pretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert toy("--out", "v.safetensors") == 0
        said = capsys.readouterr().out
        assert [line.split("  ")[0] for line in said.splitlines()[1:-1]] == ["step 2/6", "step 4/6", "step 6/6"]
        info, transformer = (
            velocity_file_info(tmp_path / "v.safetensors"),
            load_velocity_file(tmp_path / "v.safetensors"),
        )
        about = info["about"]
        assert (about["scenario"], about["seed"], about["steps"]) == ("toy", 3, 6)
        assert about["data"]["id"] == "toy:TAUGHT"
        assert len(about["scenario_sha256"]) == 64
        last = _lines(tmp_path / "v.safetensors")[-1]
        assert about["measures"] == {"error": last["error"]}
        average = load_checkpoint(checkpoint_of(tmp_path / "v.safetensors"))["training"]["average"]
        for name, value in transformer.state_dict().items():
            assert torch.equal(value, average[f"transformer.{name}"])

    def test_by_default_it_writes_below_the_folder_of_runs(self, toy: Pretrain, tmp_path: Path) -> None:
        assert toy("trainer.runs_dir=here", "seed=8") == 0
        assert (tmp_path / "here/toy/pretrain-seed8/velocity.safetensors").is_file()

    def test_ctrl_c_saves_and_resume_ends_as_if_nothing_had_been(
        self, toy: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # Of the environment's calls, one tells the leaves and one more is made for each measure.
        assert toy("--out", "whole.safetensors", "env.config.interrupt_at=1000") == 0
        monkeypatch.delitem(sys.modules, "toy")
        assert toy("--out", "v.safetensors", "env.config.interrupt_at=5") == 130
        assert "saved at step 3; go on with the same command and --resume" in capsys.readouterr().err
        assert not (tmp_path / "v.safetensors").exists()
        assert toy("--out", "v.safetensors", "env.config.interrupt_at=5", "--resume") == 0
        infos = [velocity_file_info(tmp_path / f"{name}.safetensors") for name in ("whole", "v")]
        assert infos[0]["sha256"] == infos[1]["sha256"]
        assert infos[0]["about"]["measures"] == infos[1]["about"]["measures"]

    def test_half_precision_is_measured_as_it_is_stored(self, toy: Pretrain, tmp_path: Path) -> None:
        assert toy("--out", "v.safetensors", "--half") == 0
        info = velocity_file_info(tmp_path / "v.safetensors")
        assert info["stored"] == "float16"
        rounded, exact = info["about"]["measures"]["error"], _lines(tmp_path / "v.safetensors")[-1]["error"]
        assert rounded != exact
        assert rounded == pytest.approx(exact, rel=0.02)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["pretraining=null"], "give it a section 'pretraining:'"),
            (["env.id=toy:CLIPS"], "has no data to pretrain on"),
            (["env.config.wrong=true"], "actions [1, 1, 2, 4, 5]"),
            (["agents={kind: gaussian}"], "none has a velocity network"),
            (["agents={kind: 'toy:AGENT'}"], "writes transformers"),
            (["agents.network.lora={rank: 2}"], "leave the adapters"),
            (["--out", "v.pt"], "must end in .safetensors"),
            (["--resume"], "does not exist"),
        ],
    )
    def test_what_cannot_be_done_is_said_with_the_cure(
        self, toy: Pretrain, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        assert toy(*arguments) == 2
        assert message in capsys.readouterr().err

    def test_what_was_begun_is_not_written_over(self, toy: Pretrain, capsys: pytest.CaptureFixture[str]) -> None:
        assert toy("--out", "v.safetensors") == 0
        assert toy("--out", "v.safetensors") == 2
        assert "go on with --resume" in capsys.readouterr().err
