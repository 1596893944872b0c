"""Names to factories: built-in, registered, third-party, by path, and from Gymnasium."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from marl_tr import registry
from marl_tr.cli import main
from marl_tr.errors import UserError
from marl_tr.registry import (
    BadTarget,
    BrokenPackage,
    DuplicateName,
    Entry,
    UnknownName,
    find,
    names,
    register,
    register_env,
    resolve,
)


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """``install(name, module source, entry points)``: a real distribution on the path."""

    def make(name: str, source: str, points: str) -> None:
        (tmp_path / f"{name}_module.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        monkeypatch.syspath_prepend(str(tmp_path))

    return make


@pytest.mark.parametrize("kind", [kind for kind in registry.KINDS if kind not in ("commands", "models")])
def test_every_built_in_has_a_summary_and_a_pydantic_model_of_its_settings(kind: str) -> None:
    assert names(kind)
    for name, entry in names(kind).items():
        assert entry.summary, name
        model = entry.load_config()
        assert model is not None
        assert issubclass(model, BaseModel)
        assert find(kind, name) == entry


def test_every_built_in_model_has_a_summary_and_takes_the_group_alone_so_there_is_nothing_to_set() -> None:
    assert names("models")
    for name, entry in names("models").items():
        assert entry.summary, name
        assert entry.load_config() is None
        assert len(inspect.signature(entry.load()).parameters) == 1
        assert find("models", name) == entry


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_built_in_target_leads_to_something_callable(kind: str) -> None:
    for name, entry in names(kind).items():
        assert callable(entry.load()), name


def test_a_registered_environment_is_found_by_its_name() -> None:
    register_env("team/my_env-v0", dict, summary="mine")
    assert find("envs", "team/my_env-v0").load() is dict
    assert names("envs")["team/my_env-v0"].summary == "mine"


def test_a_name_cannot_be_claimed_twice_but_the_same_thing_may_register_again() -> None:
    register_env("team/my_env-v0", dict)
    register_env("team/my_env-v0", dict)
    with pytest.raises(DuplicateName, match="already registered"):
        register_env("team/my_env-v0", list)
    with pytest.raises(DuplicateName):
        register("regions", "trpo", Entry(dict))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no kind 'env'; one of envs"):
        register("env", "x", Entry(dict))


def test_an_unknown_name_is_answered_with_the_nearest_and_the_command_that_lists_all() -> None:
    with pytest.raises(UnknownName, match=r"no region 'trop'; did you mean 'trpo'\? \('marl-tr regions' lists all\)"):
        find("regions", "trop")
    with pytest.raises(UserError):
        find("envs", "nothing like it")


def test_a_path_to_a_factory_needs_no_registration() -> None:
    assert find("envs", "collections:OrderedDict").load().__name__ == "OrderedDict"


def test_a_path_may_lead_to_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marl_tr.errors.SOME_ENTRY", Entry(dict, native=True), raising=False)
    assert find("envs", "marl_tr.errors:SOME_ENTRY").native


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("json:dunps", "did you mean 'dumps'"),
        ("no_such:x", r"cannot import module 'no_such'.*is it installed here\?"),
        ("json.decodr:x", "did you mean 'json.decoder'?"),
        ("numpyy:x", "did you mean 'numpy'?"),
        (":x", "not of the form"),
        ("json:", "not of the form"),
        ("json", "not of the form"),
        (".x:y", "not of the form"),
    ],
)
def test_a_path_that_leads_nowhere_says_which_half_failed(path: str, message: str) -> None:
    with pytest.raises(BadTarget, match=message):
        resolve(path)


def test_gymnasium_environments_are_found_by_prefix_and_made_with_their_settings() -> None:
    env = find("envs", "gymnasium/CartPole-v1").load()(max_episode_steps=7)
    assert env.spec.max_episode_steps == 7
    env.close()
    with pytest.raises(UnknownName, match="CartPole"):
        find("envs", "gymnasium/CartPohl-v1")


def test_a_third_party_package_is_discovered(install: Callable[[str, str, str], None]) -> None:
    source = "from marl_tr.registry import Entry\nENVS = {'their/env-v0': Entry(dict, 'theirs')}\n"
    install("their", source, "[marl_tr.envs]\ntheir = their_module:ENVS\n")
    assert find("envs", "their/env-v0").summary == "theirs"
    sys.modules.pop("their_module", None)


def test_metadata_are_read_once_and_again_when_a_package_has_come_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(*, group: str) -> Any:
        read.append(group)
        return entry_points(group=group)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "entry_points", counted)
    registry._points.cache_clear()
    for name in ("trpo", "measured", "trpl"):
        find("regions", name)
    names("regions")
    assert read == ["marl_tr.regions"]
    info = tmp_path / "late-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[marl_tr.regions]\nlate = late_module:REGIONS\n")
    (tmp_path / "late_module.py").write_text("from marl_tr.registry import Entry\nREGIONS = {'late': Entry(dict)}\n")
    assert find("regions", "late").target is dict
    shutil.rmtree(info)
    assert "late" not in names("regions")
    sys.modules.pop("late_module", None)


def test_two_packages_with_one_name_are_reported_and_not_chosen_from(
    install: Callable[[str, str, str], None],
) -> None:
    source = "from marl_tr.registry import Entry\nREGIONS = {'trpo': Entry(dict)}\n"
    install("clash", source, "[marl_tr.regions]\nclash = clash_module:REGIONS\n")
    with pytest.raises(DuplicateName, match=r"two installed packages register 'trpo'.*package 'clash'") as raised:
        names("regions")
    assert "package 'marl-tr'" in str(raised.value)
    assert "entry point clash = 'clash_module:REGIONS'" in str(raised.value)
    sys.modules.pop("clash_module", None)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('no licence')\n", r"RuntimeError: no licence \(.*module.py:1\)"),
        ("REGIONS = (\n", "never closed"),
        ("REGIONS = 7\n", "leads to a int, not to a table"),
        ("REGIONS = {'mine': dict}\n", "a table in which 'mine' is a type, not to a table {name: Entry}"),
    ],
)
def test_a_package_that_fails_in_another_way_is_left_out_too(
    source: str, said: str, install: Callable[[str, str, str], None]
) -> None:
    name = f"failing{abs(hash(source))}"
    install(name, source, f"[marl_tr.regions]\nfailing = {name}_module:REGIONS\n")
    with pytest.warns(RuntimeWarning, match=said):
        assert "trpo" in names("regions")
    sys.modules.pop(f"{name}_module", None)


def test_a_broken_package_is_left_out_with_a_warning(install: Callable[[str, str, str], None]) -> None:
    install("broken", "import no_such_module\n", "[marl_tr.regions]\nbroken = broken_module:REGIONS\n")
    with pytest.warns(BrokenPackage, match="package 'broken', entry point broken.*no_such_module.*broken_module.py:1"):
        assert "trpo" in names("regions")
    # Whoever asks for what it would have registered is told why that is not there.
    with pytest.raises(UnknownName, match=r"no region 'theirs'.*package 'broken'.*is left out.*no_such_module"):
        find("regions", "theirs")


def test_the_command_line_tells_of_a_broken_package_once_and_plainly(
    install: Callable[[str, str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("spoilt", "import no_such_module\n", "[marl_tr.regions]\nspoilt = spoilt_module:REGIONS\n")
    assert main(["regions"]) == 0
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("warning: package 'spoilt', entry point spoilt = 'spoilt_module:REGIONS' is left out: ")


def test_a_gymnasium_name_without_its_prefix_is_answered_with_the_prefix() -> None:
    with pytest.raises(UnknownName, match="no env 'CartPole-v1'; did you mean 'gymnasium/CartPole-v1'"):
        find("envs", "CartPole-v1")
    with pytest.raises(UnknownName, match=r"no env 'nothing at all' \('marl-tr envs' lists all\)"):
        find("envs", "nothing at all")


def test_a_region_is_found_by_its_paper_and_an_unclear_one_asks_which() -> None:
    assert find("regions", "arxiv:2401.16025") is names("regions")["spo"]
    with pytest.raises(UnknownName, match=r"'ppo_clip' and 'ppo_penalty' are of arxiv:1707\.06347; say which"):
        find("regions", "arxiv:1707.06347")
    with pytest.raises(UnknownName, match=r"no regions of arxiv:0000\.00000"):
        find("regions", "arxiv:0000.00000")
