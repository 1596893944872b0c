"""The benchmarks of flow policies, at the smallest size at which every line of theirs runs."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marl_tr.agents.sage.sampler import Sampler, sigma_grid
from marl_tr.nn.transformer import new_transformer
from marl_tr.nn.velocity_files import save_velocity_file

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark by name; its runs happen in this process, so that nothing is imported again."""
    monkeypatch.syspath_prepend(str(FOLDER))
    runs = importlib.import_module("flow_runs")

    def run_all(jobs: Any, rows: Path, *, parallel: int) -> None:
        rows.write_text("".join(json.dumps({"run": j["run"], **runs.measure_run(j)}) + "\n" for j in jobs))

    def loaded(name: str) -> Any:
        module = importlib.import_module(name)
        if hasattr(module, "run_all"):
            monkeypatch.setattr(module, "run_all", run_all)
        return module

    return loaded


@pytest.fixture
def model(tmp_path: Path) -> Path:
    arguments = {
        **{"patch_size": [4, 8, 8], "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 1},
        **{"out_channels": 1, "text_dim": 32, "freq_dim": 16, "ffn_dim": 16, "num_layers": 1},
        **{"cross_attn_norm": True, "rope_max_seq_len": 32},
    }
    transformer = new_transformer("WanTransformer3DModel", arguments, torch.Generator().manual_seed(1))
    path = tmp_path / "model.safetensors"
    save_velocity_file(path, transformer, about={})
    return path


def call(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    module.main()


def test_regions_are_compared_and_their_audits_kept(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, figure = tmp_path / "r.json", tmp_path / "r.png"
    where = ["--rows", str(tmp_path / "r.jsonl"), "--results", str(results), "--figure", str(figure)]
    small = ["--seeds", "1", "--steps", "2", "--episodes", "16", "--every", "1", "--update-bound", "1e-5"]
    call(load("flow_regions"), monkeypatch, *small, "--variants", "dual moving", *where)
    cells = {(c["variant"], c["bounded"]): c for c in json.loads(results.read_text())["cells"]}
    assert len(cells) == 2
    assert figure.stat().st_size > 0
    free, bounded = cells["dual moving", False], cells["dual moving", True]
    assert free["audit"]["policy"]["accepted"] == 2
    assert free["drift"]["mean"] > bounded["drift"]["mean"] > 0
    assert bounded["audit"]["ok"]
    assert bounded["audit"]["policy"]["interpolated"] == 2
    assert 0.8 < bounded["audit"]["policy"]["largest_ratio"] <= 1
    # The anchor moves at every update: before each the divergence is 0, after it that of one update.
    assert max(bounded["curve"]["kl_anchor_of_first_seed"]) <= 1e-5


def test_samplers_run_from_one_model_and_are_compared_with_sage(
    load: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "s.json"
    where = ["--rows", str(tmp_path / "s.jsonl"), "--results", str(results), "--figures", str(tmp_path)]
    small = ["--seeds", "1", "--steps", "1", "--copies", "8", "--chain", "2", "--episodes", "16"]
    module = load("flow_samplers")
    call(
        module,
        monkeypatch,
        *small,
        "--only",
        "sage",
        "cps",
        "--model",
        str(model),
        "--set",
        "optimizer.kind=muon",
        *where,
    )
    kept = json.loads(results.read_text())
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 4
    # The last step of cps is deterministic: both decode modes are one run.
    assert {(c["sampler"], c["decode"], c["policy"]) for c in kept["cells"]} == {
        *(("sage", decode, "same") for decode in ("latent", "clean")),
        *(("cps", decode, policy) for decode in ("latent", "clean") for policy in ("same", "matched")),
    }
    cells = {(c["sampler"], c["policy"]): c for c in kept["cells"] if c["decode"] == "latent"}
    sage, cps = cells["sage", "same"]["ode"], cells["cps", "same"]["ode"]
    assert sage["before_b"] == cps["before_b"]
    difference = cells["cps", "same"]["minus_sage"]["ode"]["gain_b"]["mean"]
    assert difference == pytest.approx(cps["gain_b"]["mean"] - sage["gain_b"]["mean"])
    weighted = 0.5 * sage["vq_before"]["mean"] + 0.5 * sage["mq_before"]["mean"] + sage["ta_before"]["mean"]
    assert sage["before_b"]["mean"] == pytest.approx(weighted)
    assert kept["settings"]["set"] == ["optimizer.kind=muon"]
    assert (tmp_path / "flow_samplers_curves.png").stat().st_size > 0
    assert (tmp_path / "flow_samplers.png").stat().st_size > 0


def test_a_matched_eta_injects_as_much_noise_as_sage(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("flow_samplers")
    monkeypatch.setattr("sys.argv", ["benchmark"])
    arguments = module.parsed()
    sigmas = sigma_grid(arguments.chain, arguments.shift)
    target = float(Sampler("sage", 0.5).coefficients(sigmas).variance.sum())
    for kind in ("dance", "flow", "cps", "precise"):
        eta = module.matched_eta(kind, arguments)["eta"]
        assert float(Sampler(kind, eta).coefficients(sigmas).variance.sum()) == pytest.approx(target)
    arguments.eta = 3.0
    beyond = module.matched_eta("cps", arguments)
    assert (beyond["eta"], beyond["reached"]) == (1.0, False)


def test_cost_and_gradients_are_measured_on_a_given_model(
    load: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "c.json"
    small = ["--steps", "1", "--model", str(model), "--results", str(results)]
    call(load("flow_cost"), monkeypatch, *small, "--copies", "8", "--chain", "2", "--iterations", "1")
    cost = json.loads(results.read_text())
    assert cost["sampling"]["ode"]["ratio_to_ode"]["median"] == 1
    assert cost["sampling"]["sage"]["cpu_s"]["median"] > 0
    assert 0.5 < sum(share for name, share in cost["iteration"]["share"].items() if name != "whole") <= 1

    figure = tmp_path / "g.png"
    call(
        load("flow_gradients"),
        monkeypatch,
        *small,
        "--samples",
        "3",
        "--grids",
        "3/5",
        "--etas",
        "0.5",
        "--figure",
        str(figure),
    )
    kept = json.loads(results.read_text())
    gradients, distances = kept["gradients"]["sage"], kept["distances"]["3/5"]["0.5"]
    # The equalizer's weights are those of the closed form: norms times them are norms over N, times the median N.
    ratio = np.array(gradients["equalized"]) * gradients["closed_form"] / gradients["raw"]
    assert ratio == pytest.approx(np.median(gradients["closed_form"]), rel=1e-5)
    assert gradients["correlation_of_logs"] > 0.9
    assert distances["cps"]["last_state"] == distances["cps"]["last_clean"]
    assert distances["dance"]["residual_in_theory"] > distances["precise"]["residual_in_theory"] == 0
    assert figure.stat().st_size > 0


def test_the_bootstrap_draws_seeds_and_samples(load: Any) -> None:
    bootstrap = load("flow_runs").bootstrap
    generator = np.random.default_rng(1)
    alone = bootstrap(generator.normal(size=(1, 400)))
    # Of one seed: the usual interval of a mean.
    assert alone["high"] - alone["low"] == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.15)
    seeds = bootstrap(np.array([[0.0], [1.0], [2.0]]))
    assert (seeds["mean"], seeds["low"], seeds["high"]) == (1.0, 0.0, 2.0)
