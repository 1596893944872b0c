"""The pretrained video model that comes with the package."""

from __future__ import annotations

from importlib.resources import as_file, files

from marl_tr.nn.transformer import TransformerVelocity
from marl_tr.nn.velocity_files import load_velocity_file
from marl_tr.vector.contract import GroupSpec

__all__ = ["moving_shapes"]


def moving_shapes(group: GroupSpec) -> TransformerVelocity:
    """A small Wan transformer, trained by ``marl-tr pretrain pretrain_shapes`` on the plain level's clips.

    Its file says seed, steps, measures and the hash of its tensors (`marl_tr.nn.velocity_files.velocity_file_info`).

    Args:
        group: Its leaf ``tokens`` is the condition.
    """
    del group
    with as_file(files("marl_tr.envs.flow") / "pretrained" / "moving_shapes.safetensors") as path:
        return TransformerVelocity(load_velocity_file(path), condition="tokens")
