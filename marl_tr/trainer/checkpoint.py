"""A checkpoint is one safetensors file: arrays as tensors, everything else as JSON in its header.

Nothing is pickled, so a checkpoint from a stranger can be opened. The file is written under a temporary name,
flushed to the disk together with its folder, and renamed: under its own name it is either absent or whole.
Equal states give equal bytes.

The header's only entry, ``"marl_tr.checkpoint"``, holds ``{"version": 1, "state": ...}``. In the tree of a
state, numbers, strings, bools and null stand for themselves and a list for a list; whatever JSON cannot say is
an object with one tag: ``{"dict": {...}}``, ``{"pairs": [[key, value], ...]}`` (a dict with keys other than
strings), ``{"tuple": [...]}``, ``{"float": "nan"}``, ``{"tensor": name}``, ``{"array": name}`` and
``{"scalar": name}`` (NumPy, with and without dimensions).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from marl_tr.errors import CheckpointError

__all__ = [
    "CheckpointError",
    "checkpoint_path",
    "expect",
    "latest_checkpoint",
    "load_checkpoint",
    "prune_checkpoints",
    "refusing_misfits",
    "save_checkpoint",
]

VERSION = 1
_HEADER_KEY = "marl_tr.checkpoint"
_NAME = re.compile(r"step_(\d{12,})\.safetensors")
_PARTIAL_SUFFIX = ".safetensors.partial"
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of environment step `step` lives: ``folder/step_000000012800.safetensors``."""
    return folder / f"step_{step:012d}.safetensors"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path`, all or nothing.

    Args:
        path: The file; its folder is made where it is missing. Temporary files that a killed save left there
            are removed.
        state: Nested dicts (keys str or int), lists and tuples of torch tensors, NumPy arrays, NumPy scalars,
            ints of any size, floats, bools, strings and None. Tied tensors are stored once each, by value.

    Raises:
        CheckpointError: A value is of no such type (named by its path), or the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    header = {"version": VERSION, "state": _encode(state, "", tensors)}
    text = json.dumps(header, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_partials(path.parent)
        _write_whole(path, to_safetensors(tensors, metadata={_HEADER_KEY: text}))
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {path}: {error.strerror or error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, value for value: tensors on the CPU, NumPy arrays as NumPy arrays.

    Raises:
        CheckpointError: No such file, cut off, not a checkpoint, or of a version that is not known here.
    """
    if not path.is_file():
        what = "is a folder, not a checkpoint" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {what}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER_KEY)
            # Cloned, because the tensors of a mapped file would keep the file's memory and share one storage.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut off or is not a safetensors file ({error})") from error
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of marl-tr")
    header = _parse_header(path, text)
    try:
        state = _decode(header["state"], tensors)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header does not fit its tensors ({error!r})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: the header holds no state")
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, or None; temporary files are not seen."""
    found = _numbered(folder)
    return found[-1] if found else None


def prune_checkpoints(folder: Path, keep: int) -> list[Path]:
    """Delete all but the `keep` newest checkpoints of `folder` and return what was deleted.

    Raises:
        ValueError: `keep` is below 1: the newest is never deleted.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    old = _numbered(folder)[:-keep]
    for path in old:
        path.unlink(missing_ok=True)
    return old


@contextlib.contextmanager
def refusing_misfits() -> Iterator[None]:
    """Inside, what networks and optimizers say of a state that is not theirs becomes a `CheckpointError`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        # torch lists every tensor, over many lines; the first ones say what is wrong.
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"the checkpoint's networks are not those of the scenario ({type(error).__name__}: {said[:300]})"
        ) from error


def expect(
    state: Mapping[str, Any],
    path: str,
    kind: type | tuple[type, ...] | None = None,
    *,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | np.dtype[Any] | None = None,
) -> Any:
    """The entry of a loaded state at `path`, checked.

    Args:
        state: What `load_checkpoint` returned, or a part of it.
        path: Keys and list indices joined by dots, ``"critic.optimizer.state.0.exp_avg"``. A key may itself
            hold dots, as those of a module's state dict do.
        kind: The type or types that the entry must have.
        shape: The shape that a tensor or array must have.
        dtype: The dtype that a tensor or array must have.

    Raises:
        CheckpointError: Nothing is there, or it is of another type, shape or dtype; names the path.
    """
    value = _walk(state, path)
    if kind is not None and not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise CheckpointError(f"checkpoint entry {path!r} is a {type(value).__name__}, not a {wanted}")
    if shape is None and dtype is None:
        return value
    if not isinstance(value, Tensor | np.ndarray):
        raise CheckpointError(f"checkpoint entry {path!r} is a {type(value).__name__}, not a tensor or array")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise CheckpointError(f"checkpoint entry {path!r} has shape {list(value.shape)}, not {list(shape)}")
    if dtype is not None and value.dtype != dtype:
        raise CheckpointError(f"checkpoint entry {path!r} has dtype {value.dtype}, not {dtype}")
    return value


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON of `value`; its arrays go to `tensors` under names made from their paths."""
    match value:
        case Tensor():
            return {"tensor": _store(value.detach().cpu(), path, tensors)}
        case np.ndarray() | np.number() | np.bool_():
            try:
                # Copied, in native byte order: from_numpy takes neither negative strides nor foreign orders.
                array = np.array(value, order="C", dtype=value.dtype.newbyteorder("="))
                tensor = torch.from_numpy(array)
            except TypeError as error:
                raise CheckpointError(f"cannot save {path!r}: NumPy dtype {value.dtype}") from error
            tag = "array" if isinstance(value, np.ndarray) else "scalar"
            return {tag: _store(tensor, path, tensors)}
        case None | bool():
            return value
        case str():
            return str(value)
        case int():
            return int(value)
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case Mapping():
            return _encode_mapping(value, path, tensors)
        case list() | tuple():
            items = [_encode(item, _join(path, i), tensors) for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
    raise CheckpointError(f"cannot save {path!r}: a {type(value).__module__}.{type(value).__qualname__}")


def _encode_mapping(value: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> Any:
    for key in value:
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise CheckpointError(f"cannot save {path!r}: key {key!r} is neither a string nor an integer")
    pairs = [(key, _encode(item, _join(path, key), tensors)) for key, item in value.items()]
    if all(isinstance(key, str) for key in value):
        return {"dict": dict(pairs)}
    return {"pairs": [list(pair) for pair in pairs]}


def _store(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    """Put a copy of `tensor` in `tensors` under a name that is free ('a.b' can come from two places)."""
    if tensor.layout != torch.strided:
        raise CheckpointError(f"cannot save {path!r}: a tensor with layout {tensor.layout}")
    if tensor.dtype in (torch.complex128, torch.complex32):
        raise CheckpointError(f"cannot save {path!r}: a tensor of dtype {tensor.dtype}")
    name, copies = path, 1
    while name in tensors or name == "__metadata__":
        copies += 1
        name = f"{path}~{copies}"
    # The format has neither strides nor shared memory.
    tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    return name


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    match tag:
        case "dict":
            return {key: _decode(item, tensors) for key, item in content.items()}
        case "pairs":
            return {key: _decode(item, tensors) for key, item in content}
        case "tuple":
            return tuple(_decode(item, tensors) for item in content)
        case "float":
            return _NON_FINITE[content]
        case "tensor":
            return tensors[content]
        case "array":
            return tensors[content].numpy()
        case "scalar":
            return tensors[content].numpy()[()]
    raise ValueError(f"unknown tag {tag!r}")


def _parse_header(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        version = header["version"]
        known = header if "state" in header else None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the checkpoint's header is not readable ({error!r})") from error
    if version != VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {version!r}; this program reads version {VERSION}. "
            "Use the marl-tr that wrote it (scenario.yaml of the run names it)."
        )
    if known is None:
        raise CheckpointError(f"{path}: the checkpoint's header holds no state")
    return dict(known)


def _walk(state: Any, path: str) -> Any:
    value, rest, done = state, path.split("."), 0
    while done < len(rest):
        for end in range(done + 1, len(rest) + 1):
            found, value_at = _child(value, ".".join(rest[done:end]))
            if found:
                value, done = value_at, end
                break
        else:
            where = ".".join(rest[:done]) or "the top level"
            raise CheckpointError(f"checkpoint entry {path!r} is missing: {where} holds {_contents(value)}")
    return value


def _child(value: Any, key: str) -> tuple[bool, Any]:
    if isinstance(value, Mapping):
        if key in value:
            return True, value[key]
        if key.isdecimal() and int(key) in value:
            return True, value[int(key)]
    if isinstance(value, list | tuple) and key.isdecimal() and int(key) < len(value):
        return True, value[int(key)]
    return False, None


def _contents(value: Any) -> str:
    if isinstance(value, Mapping):
        shown = ", ".join(map(str, list(value)[:8])) or "nothing"
        return shown + (f" and {len(value) - 8} more" if len(value) > 8 else "")
    if isinstance(value, list | tuple):
        return f"{len(value)} entries"
    return f"a {type(value).__name__}"


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name.removesuffix('.safetensors')}{_PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    # The rename itself is on disk only once the folder is.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_partials(folder: Path) -> None:
    for leftover in folder.glob(f".*{_PARTIAL_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    steps = {path: int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__)
