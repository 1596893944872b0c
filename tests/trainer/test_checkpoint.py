import json
import math
import os
import random
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from marl_tr.errors import UserError
from marl_tr.trainer.checkpoint import (
    CheckpointError,
    checkpoint_path,
    expect,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)

TORCH_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]
NUMPY_DTYPES = ["?", "u1", "i2", "u4", "i8", "u8", "f2", "f4", "f8", "c8"]


def same(a: Any, b: Any) -> bool:
    """Equal in type, value and bits (-0.0 is not 0.0, nan is nan)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
        )
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return bool(a == b)


def random_state(rng: random.Random, depth: int) -> Any:
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    kind = rng.randrange(11 if depth else 8)
    shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
    if kind == 0:
        return (torch.randn(shape, generator=generator) * 9).to(rng.choice(TORCH_DTYPES))
    if kind == 1:
        values = np.random.default_rng(rng.getrandbits(60)).integers(0, 99, shape)
        return np.asarray(values).astype(rng.choice(NUMPY_DTYPES))
    if kind == 2:
        return rng.choice([-1, 1]) * rng.getrandbits(rng.choice([1, 31, 64, 128, 700]))
    if kind == 3:
        return rng.choice([0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, rng.gauss(0, 1)])
    if kind == 4:
        return rng.random() < 0.5
    if kind == 5:
        return rng.choice(["", "step", "Grüße, 你好", 'quote " and \\ and \n', "\x00", "nan"])
    if kind == 6:
        return None
    if kind == 7:
        return np.dtype(rng.choice(NUMPY_DTYPES)).type(rng.randrange(100))
    size = rng.randrange(4)
    if kind == 8:
        return [random_state(rng, depth - 1) for _ in range(size)]
    if kind == 9:
        return tuple(random_state(rng, depth - 1) for _ in range(size))
    keys: list[Any] = ["a", "b", "a.b", "__metadata__", "dict", "0", 0, 1, -5, "", "~2"]
    return {key: random_state(rng, depth - 1) for key in rng.sample(keys, size)}


@pytest.mark.parametrize("seed", range(150))
def test_random_nested_states_come_back_bit_for_bit(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    keys = ["a", "b", "a.b", "__metadata__"]
    state = {key: random_state(rng, 4) for key in keys}
    path = checkpoint_path(tmp_path, seed)
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert same(loaded, state)
    # Saving what was loaded gives the same file, byte for byte.
    save_checkpoint(tmp_path / "again.safetensors", loaded)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [[], [0], [3, 0, 2], [2, 3]], ids=str)
def test_every_dtype_survives_with_and_without_elements(tmp_path: Path, dtype: torch.dtype, shape: list[int]) -> None:
    state = {"x": (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)}
    save_checkpoint(tmp_path / "x.safetensors", state)
    assert same(load_checkpoint(tmp_path / "x.safetensors"), state)


def test_random_generators_continue_where_they_were(tmp_path: Path) -> None:
    torch_generator = torch.Generator().manual_seed(3)
    numpy_generators = [
        np.random.Generator(kind(7)) for kind in (np.random.PCG64, np.random.Philox, np.random.MT19937, np.random.SFC64)
    ]
    save_checkpoint(
        tmp_path / "rng.safetensors",
        {"torch": torch_generator.get_state(), "numpy": [g.bit_generator.state for g in numpy_generators]},
    )
    expected = [g.random(5) for g in numpy_generators], torch.rand(5, generator=torch_generator)
    loaded = load_checkpoint(tmp_path / "rng.safetensors")
    for generator, state, numbers in zip(numpy_generators, loaded["numpy"], expected[0], strict=True):
        generator.bit_generator.state = state
        assert np.array_equal(generator.random(5), numbers)
    torch_generator.set_state(loaded["torch"])
    assert torch.equal(torch.rand(5, generator=torch_generator), expected[1])


def test_a_module_and_its_optimizer_take_the_same_next_step(tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    def learn(model: torch.nn.Linear, optimizer: torch.optim.Adam) -> None:
        optimizer.zero_grad()
        model(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
        optimizer.step()

    model, optimizer = build()
    learn(model, optimizer)
    save_checkpoint(tmp_path / "m.safetensors", {"model": model.state_dict(), "opt": optimizer.state_dict()})
    learn(model, optimizer)
    other, other_optimizer = build()
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    other.load_state_dict(loaded["model"])
    other_optimizer.load_state_dict(loaded["opt"])
    learn(other, other_optimizer)
    assert all(same(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_tied_strided_and_trainable_tensors_are_stored_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(
        whole=base,
        again=base,
        row=base[1],
        column=base[:, 2],
        transposed=base.T,
        expanded=base[0].expand(5, 4),
    )
    state["parameter"] = torch.nn.Parameter(base)
    array = np.arange(6, dtype=">i4")[::-2]
    save_checkpoint(tmp_path / "t.safetensors", {**state, "array": array})
    loaded = load_checkpoint(tmp_path / "t.safetensors")
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor.detach()), name
    assert np.array_equal(loaded["array"], [5, 3, 1])
    loaded["whole"].zero_()
    assert torch.equal(loaded["again"], base)
    loaded["array"][0] = 0


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "builtins.object"),
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (np.array(["text"]), "<U4"),
        (np.array([object()]), "object"),
        ({1.5: 0}, "1.5"),
    ],
)
def test_what_cannot_be_saved_is_named_and_leaves_no_file(tmp_path: Path, value: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=r"critic\.head\.0") as caught:
        save_checkpoint(tmp_path / "x.safetensors", {"critic": {"head": [value]}})
    assert named in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert list(tmp_path.iterdir()) == []


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"x": torch.arange(20), "n": 3})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut off"):
            load_checkpoint(path)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="folder"):
        load_checkpoint(tmp_path)
    torch.save({"x": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(path)
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of marl-tr"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (json.dumps({"version": 2, "state": {"dict": {}}}), "version 2"),
        (json.dumps({"version": 1}), "no state"),
        (json.dumps({"state": {}}), "not readable"),
        ("{", "not readable"),
        ("[1]", "not readable"),
        (json.dumps({"version": 1, "state": 3}), "no state"),
        (json.dumps({"version": 1, "state": {"dict": {"x": {"tensor": "missing"}}}}), "missing"),
        (json.dumps({"version": 1, "state": {"dict": {"x": {"pickle": "x"}}}}), "unknown tag"),
        (json.dumps({"version": 1, "state": {"dict": {"x": {"a": 1, "b": 2}}}}), "does not fit"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: str, message: str) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors", metadata={"marl_tr.checkpoint": header})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x.safetensors")


def test_a_failed_save_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, {"n": 1})
    blocked = checkpoint_path(tmp_path, 2)
    blocked.mkdir()
    with pytest.raises(CheckpointError, match="cannot write checkpoint"):
        save_checkpoint(blocked, {"n": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, blocked.name]
    assert load_checkpoint(path) == {"n": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoint"):
        save_checkpoint(tmp_path / "file" / "x.safetensors", {"n": 2})


def test_latest_is_the_highest_step_and_pruning_keeps_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert latest_checkpoint(folder) is None
    for step in (900, 12_800, 3_000_000_000_000, 100):
        save_checkpoint(checkpoint_path(folder, step), {"step": step})
    (folder / "notes.txt").write_text("kept")
    assert checkpoint_path(folder, 12_800).name == "step_000000012800.safetensors"
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert load_checkpoint(latest) == {"step": 3_000_000_000_000}
    assert prune_checkpoints(folder, 2) == [checkpoint_path(folder, 100), checkpoint_path(folder, 900)]
    assert prune_checkpoints(folder, 2) == []
    assert len(list(folder.iterdir())) == 3
    with pytest.raises(ValueError, match="at least 1"):
        prune_checkpoints(folder, 0)


def test_a_leftover_of_a_killed_save_is_ignored_and_removed_by_the_next(tmp_path: Path) -> None:
    leftover = tmp_path / ".step_000000000500.safetensors.partial"
    leftover.write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    save_checkpoint(checkpoint_path(tmp_path, 1), {"n": 1})
    assert not leftover.exists()


KILL_REPEATEDLY = """
import os, random, select, signal, sys, torch
from pathlib import Path
from marl_tr.trainer.checkpoint import checkpoint_path, latest_checkpoint, load_checkpoint
from marl_tr.trainer.checkpoint import prune_checkpoints, save_checkpoint

def save_forever(folder, step, pipe):
    while True:
        step += 1
        x = torch.full((100_000,), float(step))
        save_checkpoint(checkpoint_path(folder, step), {"step": step, "x": x})
        os.write(pipe, b"%d " % step)
        prune_checkpoints(folder, 2)

folder, rng, saved, partials = Path(sys.argv[1]), random.Random(0), 0, 0
for kill in range(40):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        save_forever(folder, saved, writer)
    os.close(writer)
    announced = [os.read(reader, 64)]
    select.select([], [], [], rng.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while chunk := os.read(reader, 4096):
        announced.append(chunk)
    os.close(reader)
    partials += len(list(folder.glob(".*.partial")))
    state = load_checkpoint(latest_checkpoint(folder))
    saved = state["step"]
    assert saved >= int(b"".join(announced).split()[-1])
    assert torch.equal(state["x"], torch.full((100_000,), float(saved)))
print(partials)
"""


def test_a_kill_at_any_moment_leaves_a_latest_that_loads(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL_REPEATEDLY, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Some of the kills must have met a save half way, or the test shows nothing.
    assert int(done.stdout) > 0


STATE = {
    "networks": {"0.weight": torch.zeros(2, 3), "1": {"bias": np.zeros(4)}},
    "optimizer": {"state": {0: {"step": 5}}, "betas": (0.9, 0.999)},
}


def test_expect_finds_entries_by_path() -> None:
    assert expect(STATE, "networks.0.weight", torch.Tensor, shape=[2, 3], dtype=torch.float32).shape == (2, 3)
    assert expect(STATE, "networks.1.bias", shape=(4,), dtype=np.dtype("f8")).shape == (4,)
    assert expect(STATE, "optimizer.state.0.step", int) == 5
    assert expect(STATE, "optimizer.betas.1", (int, float)) == 0.999


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("critic.x", {}, r"'critic.x' is missing: the top level holds networks, optimizer"),
        ("optimizer.state.1", {}, r"'optimizer.state.1' is missing: optimizer.state holds 0"),
        ("optimizer.betas.2", {}, "2 entries"),
        ("optimizer.state.0.step.x", {}, "a int"),
        ("optimizer.state.0.step", {"kind": str}, "is a int, not a str"),
        ("optimizer.state.0.step", {"shape": [1]}, "not a tensor or array"),
        ("networks.0.weight", {"shape": [3, 2]}, r"has shape \[2, 3\], not \[3, 2\]"),
        ("networks.0.weight", {"dtype": torch.float64}, "has dtype torch.float32, not torch.float64"),
    ],
)
def test_expect_names_the_path_and_what_is_wrong(path: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        expect(STATE, path, **arguments)
