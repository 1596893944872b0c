"""The preference example: every loss learns within its bound, and the teacher's advantage does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def preferences(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("preferences")


@pytest.mark.parametrize("name", ["adpo", "tr_dpo", "trpa", "psft", "trsft"])
def test_a_few_rounds_of_every_loss_raise_the_score_within_the_bound(preferences: Any, name: str) -> None:
    torch.set_num_threads(1)
    outcome = preferences.train(name, rounds=8, bound=0.02)
    assert outcome.after > outcome.before + 0.005
    assert 0.002 < outcome.largest <= 0.02


def test_the_script_ends_with_a_taught_policy(
    preferences: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["preferences.py", "--losses", "psft", "--rounds", "10"])
    threads = torch.get_num_threads()
    try:
        preferences.main()
    finally:
        torch.set_num_threads(threads)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("psft")
    assert second.startswith("erpd, taught by psft")
    before, after = second.split("score ")[1].split(",")[0].split(" -> ")
    assert float(after) > float(before)
