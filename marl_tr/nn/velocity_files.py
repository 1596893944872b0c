"""Pretrained transformers on disk: one safetensors file of ours, or a folder that diffusers saved.

The header of a file of ours has one entry, ``"marl_tr.velocity"``, JSON: ``{"version": 1, "class": ...,
"config": ..., "sha256": ..., "stored": "float32" | "float16", "about": {...}}``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from marl_tr.errors import CheckpointError
from marl_tr.nn.transformer import transformer_class

__all__ = ["load_folder", "load_velocity_file", "save_velocity_file", "tensors_sha256", "velocity_file_info"]

VERSION = 1
_HEADER_KEY = "marl_tr.velocity"
_PRIVATE = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values")


def save_velocity_file(path: Path, transformer: Any, *, about: Mapping[str, Any], half: bool = False) -> str:
    """Write a diffusers transformer to one file; returns the SHA-256 of its tensors.

    Args:
        path: The file; written under another name and renamed.
        transformer: The model.
        about: Anything that JSON can say: seed, steps, data, measures.
        half: Store float16, which halves the file; it is loaded as float32.

    Raises:
        CheckpointError: The disk refuses.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {name: x.detach().cpu().to(dtype).contiguous().clone() for name, x in transformer.state_dict().items()}
    digest = tensors_sha256(tensors)
    header = {
        "version": VERSION,
        "class": type(transformer).__name__,
        "config": {key: value for key, value in transformer.config.items() if key not in _PRIVATE},
        "stored": str(dtype).removeprefix("torch."),
        "sha256": digest,
        "about": dict(about),
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not safetensors' own save_file, whose files only their owner may read.
        partial.write_bytes(save(tensors, {_HEADER_KEY: json.dumps(header, allow_nan=False, ensure_ascii=False)}))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    return digest


def velocity_file_info(path: Path) -> dict[str, Any]:
    """What the header of a file of `save_velocity_file` says.

    Raises:
        CheckpointError: No such file, cut off, or another kind of file.
    """
    return _read(path)[0]


def load_velocity_file(path: Path) -> Any:
    """The transformer in a file of `save_velocity_file`, in float32 on the CPU.

    Raises:
        CheckpointError: No such file, cut off, another kind of file, tensors that are not those that were written, or
            not those of its class.
    """
    header, tensors = _read(path)
    factory = transformer_class(header["class"], str(path))
    digest = tensors_sha256(tensors)
    if digest != header["sha256"]:
        raise CheckpointError(f"{path}: the tensors' SHA-256 is {digest}, and {header['sha256']} was written")
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    _check_tensors(path, factory, header["config"], shapes)
    with torch.random.fork_rng(devices=[]):
        transformer = factory.from_config(header["config"])
    transformer.load_state_dict({name: x.float() for name, x in tensors.items()})
    return transformer


def load_folder(folder: Path) -> Any:
    """The transformer that ``save_pretrained`` wrote to `folder` (or to its ``transformer/``, for a pipeline's).

    Nothing is downloaded, and only safetensors are read.

    Raises:
        CheckpointError: No such model there, tensors that are missing or of another shape than its config says.
        UserError: A class that is not known here.
    """
    if (folder / "model_index.json").is_file():
        folder = folder / "transformer"
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        name = config["_class_name"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no config.json, so it is not the folder of a diffusers model") from error
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} does not say which class it is of ({error!r})") from error
    factory = transformer_class(name, str(file))
    _check_tensors(folder, factory, config, _shapes_in(folder))
    return factory.from_pretrained(folder, local_files_only=True, use_safetensors=True)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {list(x.shape)}\n".encode())
        digest.update(x.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER_KEY)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is cut off or is not a safetensors file ({error})") from error
    if text is None:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of 'marl-tr pretrain'; a diffusers model is given by its folder"
        )
    header = json.loads(text)
    if header.get("version") != VERSION:
        raise CheckpointError(f"{path} is of version {header.get('version')!r}; this program reads {VERSION}")
    return header, tensors


def _shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the safetensors files of `folder`."""
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no diffusion_pytorch_model*.safetensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is cut off or is not a safetensors file ({error})") from error
    return shapes


def _check_tensors(where: Path, factory: Any, config: Mapping[str, Any], found: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are not those of the class at its config.

    diffusers itself would start what is missing at random, with a warning.
    """
    try:
        with torch.device("meta"):
            wanted = {name: tuple(x.shape) for name, x in factory.from_config(dict(config)).state_dict().items()}
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: {factory.__name__} refuses its config: {error}") from error
    missing = sorted(set(wanted) - set(found))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{where}: {factory.__name__} needs tensor {missing[0]}{more}, which is not there")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{where}: tensor {name} has shape {list(found[name])}, and {factory.__name__} at its config has "
                f"{list(shape)}"
            )
    ignored = tuple(getattr(factory, "_keys_to_ignore_on_load_unexpected", None) or ())
    unknown = sorted(name for name in set(found) - set(wanted) if not any(part in name for part in ignored))
    if unknown:
        raise CheckpointError(
            f"{where}: {factory.__name__} has no tensor {unknown[0]} (shape {list(found[unknown[0]])})"
        )
