"""Video transformers of diffusers as the velocity of a flow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from marl_tr.errors import UserError
from marl_tr.nn.velocity import event_shape
from marl_tr.registry import find
from marl_tr.scenario.velocity import LoraConfig, TransformerVelocityConfig
from marl_tr.vector.contract import GroupSpec

__all__ = ["TransformerVelocity", "build_transformer", "known_architectures", "new_transformer"]

_TRAINING_STEPS = 1000
"""The classes' time runs from 0 to 1000."""
_LTX_INTERPOLATION = (8 / 25, 32.0, 32.0)
"""Frames and pixels that a latent stands for, as `diffusers.LTXPipeline` says them: 8 frames of 25 a second, 32."""


def build_transformer(
    config: TransformerVelocityConfig, group: GroupSpec, generator: torch.Generator
) -> TransformerVelocity:
    """The transformer of `config` for the actions of `group`.

    Args:
        config: Pretrained or random, and how it computes.
        group: Its action is the sample ``[C, F, H, W]``; its leaf ``config.condition`` the text ``[L, D]``.
        generator: Source of random weights; torch's global generator is left as it is.

    Raises:
        CheckpointError: The pretrained file is not what it should be.
        UserError: The class is not known here, its arguments are wrong, the spaces do not suit it, or an extra is
            not installed.
    """
    if config.pretrained is None:
        transformer = new_transformer(config.architecture, config.arguments, generator)
    else:
        transformer = _pretrained(config.pretrained, group)
        _check_same_architecture(config, transformer)
    if config.lora is not None:
        # What does not learn is stored in the dtype of the computation.
        transformer.to(getattr(torch, config.dtype))
        _add_lora(transformer, config.lora, generator)
    velocity = TransformerVelocity(
        transformer,
        condition=config.condition,
        dtype=config.dtype,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    _check_spaces(velocity, group)
    return velocity


def known_architectures() -> tuple[str, ...]:
    """Classes of diffusers that can be called here."""
    return tuple(_FAMILIES)


def new_transformer(architecture: str, arguments: Mapping[str, Any], generator: torch.Generator) -> Any:
    """A diffusers transformer from a random start.

    Raises:
        UserError: The class is not known here, or refuses its arguments.
    """
    factory = transformer_class(architecture, "network.architecture")
    unknown = sorted(set(arguments) - set(factory._get_init_keys(factory)))
    if unknown:
        raise UserError(f"network.arguments: {architecture} takes no {', '.join(unknown)}")
    with _forked(generator):
        try:
            return factory(**arguments)
        except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise UserError(f"network.arguments: {architecture} refuses them: {error}") from error


def transformer_class(architecture: str, where: str) -> Any:
    """The class of diffusers.

    Raises:
        UserError: It is not known here; begins with `where`.
    """
    if architecture not in _FAMILIES:
        raise UserError(f"{where}: no way to call {architecture!r} is known; one of {', '.join(_FAMILIES)}")
    import diffusers

    return getattr(diffusers, architecture)


class TransformerVelocity(nn.Module):
    """A video transformer as a `marl_tr.nn.velocity.Velocity` of samples ``[B, C, F, H, W]``.

    What learns stays in float32 whatever `dtype` says, so that small updates are not rounded away; products then
    run in `dtype` by autocast. Parameters and samples in float64 are computed in float64 throughout, with an
    attention that can be differentiated twice (diffusers itself falls back to float32 in norms and embeddings).

    Args:
        transformer: A diffusers model of a class in `known_architectures`.
        condition: Observation leaf ``[B, L, D]`` that a text encoder's output stands in; other leaves are not read.
        dtype: In which it computes; velocities come back in the dtype of the samples.
        gradient_checkpointing: Recompute each block in the backward pass.

    Attributes:
        transformer: The model.

    Raises:
        UserError: The class is not known here.
    """

    def __init__(
        self,
        transformer: Any,
        *,
        condition: str = "tokens",
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        name = type(transformer).__name__
        transformer_class(name, "transformer")
        self.transformer = transformer
        self.condition = condition
        self._family = _FAMILIES[name]
        self._dtype = getattr(torch, dtype)
        if gradient_checkpointing:
            transformer.enable_gradient_checkpointing(_checkpointed)

    def forward(self, x: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """See `Velocity`."""
        text = observation[self.condition].to(x.dtype)
        with _arithmetic(x, self._dtype):
            velocity = self._family.call(self.transformer, x, _TRAINING_STEPS * sigma.to(x.dtype), text)
        return velocity.to(x.dtype)


@dataclass(frozen=True)
class _Family:
    """How one class is called.

    Attributes:
        call: ``(model, x [B, C, F, H, W], time [B] in 0 ... 1000, text [B, L, D]) -> [B, C, F, H, W]``.
        text: Name of the argument that is ``D``.
        patch: Frames, rows and columns of a patch, from the model's config.
        channels: ``C`` from the model's config.
    """

    call: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    text: str
    patch: Callable[[Any], tuple[int, int, int]]
    channels: Callable[[Any], int] = lambda config: int(config.in_channels)


def _call_wan(model: Any, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    velocity: Tensor = model(x, time, text, return_dict=False)[0]
    return velocity


def _call_hunyuan(model: Any, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    width = model.config.pooled_projection_dim
    # Stands for the pooled output of a second text encoder, which our conditions do not have.
    pooled = text.mean(1)[:, :width]
    pooled = nn.functional.pad(pooled, (0, width - pooled.shape[1]))
    # Models distilled from guidance ask for its scale; 1 is none.
    guidance = torch.full_like(time, _TRAINING_STEPS) if model.config.guidance_embeds else None
    mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    velocity: Tensor = model(x, time, text, mask, pooled, guidance, return_dict=False)[0]
    return velocity


def _call_ltx(model: Any, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    batch, channels = x.shape[:2]
    sizes = [size // patch for size, patch in zip(x.shape[2:], _patch_ltx(model.config), strict=True)]
    patch = _patch_ltx(model.config)
    cut = x.unflatten(4, (sizes[2], patch[2])).unflatten(3, (sizes[1], patch[1])).unflatten(2, (sizes[0], patch[0]))
    tokens = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4, 7).flatten(1, 3)
    mask = torch.ones(text.shape[:2], dtype=x.dtype, device=text.device)
    velocity = model(
        tokens,
        text,
        time,
        mask,
        *sizes,
        rope_interpolation_scale=_LTX_INTERPOLATION,
        return_dict=False,
    )[0]
    velocity = velocity.unflatten(2, (channels, *patch)).unflatten(1, sizes)
    whole: Tensor = velocity.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, *x.shape[1:])
    return whole


def _patch_ltx(config: Any) -> tuple[int, int, int]:
    return config.patch_size_t, config.patch_size, config.patch_size


_FAMILIES = {
    "WanTransformer3DModel": _Family(_call_wan, "text_dim", lambda config: tuple(config.patch_size)),
    "HunyuanVideoTransformer3DModel": _Family(
        _call_hunyuan, "text_embed_dim", lambda config: (config.patch_size_t, config.patch_size, config.patch_size)
    ),
    "LTXVideoTransformer3DModel": _Family(
        _call_ltx,
        "caption_channels",
        _patch_ltx,
        # It is given patches, already packed.
        lambda config: config.in_channels // (config.patch_size_t * config.patch_size**2),
    ),
}


class _KeepDouble(TorchFunctionMode):
    """Leaves float64 as it is where a module asks for float32 (norms and embeddings of diffusers do)."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, unless it would round."""
        if func is Tensor.float and args[0].dtype == torch.float64:
            return args[0]
        if func is Tensor.to and args[0].dtype == torch.float64:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            kwargs = {key: torch.float64 if arg is torch.float32 else arg for key, arg in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _arithmetic(x: Tensor, dtype: torch.dtype) -> Iterator[None]:
    """Inside, a transformer given samples like `x` computes as `TransformerVelocity` says."""
    if x.dtype == torch.float64:
        # The fused kernels have no second derivative.
        with _KeepDouble(), sdpa_kernel(SDPBackend.MATH):
            yield
    elif dtype != torch.float32:
        with torch.autocast(x.device.type, dtype=dtype):
            yield
    else:
        yield


def _checkpointed(block: nn.Module, *inputs: Any) -> Any:
    """A block that is run again in the backward pass: there too with the tensors and the arithmetic of now.

    By itself `checkpoint` would run it with whatever parameters the module then holds, which under
    `torch.func.functional_call` are others.
    """
    held = dict(block.named_parameters()) | dict(block.named_buffers())

    def run(*given: Any) -> Any:
        # Autocast is brought back by `checkpoint` itself.
        with _arithmetic(inputs[0], torch.float32):
            return functional_call(block, held, given)

    return checkpoint(run, *inputs, use_reentrant=False)


@contextlib.contextmanager
def _forked(generator: torch.Generator) -> Iterator[None]:
    """Inside, torch's global generator draws what follows from `generator`; afterwards it is as it was."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the accelerators' generators for good.
        torch.default_generator.manual_seed(seed)
        yield


def _pretrained(name: str, group: GroupSpec) -> Any:
    """The transformer that `name` leads to: a folder, a file, or what is registered."""
    from marl_tr.nn.velocity_files import load_folder, load_velocity_file

    path = Path(name).expanduser()
    if path.is_dir():
        return load_folder(path)
    if path.suffix == ".safetensors":
        return load_velocity_file(path)
    velocity = find("models", name).load()(group)
    if not isinstance(velocity, TransformerVelocity):
        raise UserError(
            f"network.pretrained: {name!r} is a {type(velocity).__name__}, not a transformer; as the base of a "
            "residual it can be had by network: {kind: residual, base: ...}"
        )
    return velocity.transformer


def _check_same_architecture(config: TransformerVelocityConfig, transformer: Any) -> None:
    """What a scenario says beside `pretrained` must be so."""
    found = type(transformer).__name__
    if "architecture" in config.model_fields_set and config.architecture != found:
        raise UserError(
            f"network.pretrained: {config.pretrained} holds a {found}, and network.architecture says "
            f"{config.architecture}"
        )
    for name, wanted in config.arguments.items():
        value = transformer.config.get(name)
        same = list(value) == list(wanted) if isinstance(value, list | tuple) else value == wanted
        if not same:
            raise UserError(
                f"network.pretrained: {config.pretrained} has {name} {value!r}, and network.arguments says {wanted!r}"
            )


def _add_lora(transformer: Any, config: LoraConfig, generator: torch.Generator) -> None:
    """Put adapters into `transformer`, which alone learn, in float32; they start at zero output."""
    try:
        from peft import LoraConfig as Adapter
    except ImportError as error:
        raise UserError("network.lora needs peft: pip install 'marl-tr[lora]'") from error
    transformer.requires_grad_(False)
    with _forked(generator):
        try:
            # peft says int, and divides by the rank.
            alpha: Any = config.alpha
            transformer.add_adapter(Adapter(r=config.rank, lora_alpha=alpha, target_modules=list(config.targets)))
        except ValueError as error:
            raise UserError(f"network.lora.targets: {str(error).partition('. ')[0]}") from error
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _check_spaces(velocity: TransformerVelocity, group: GroupSpec) -> None:
    """Refuse what the model would stumble over in the middle of a run."""
    family, config = velocity._family, velocity.transformer.config
    name, event = type(velocity.transformer).__name__, event_shape(group)
    channels, patch = family.channels(config), family.patch(config)
    if len(event) != 4 or event[0] != channels or any(size % p for size, p in zip(event[1:], patch, strict=True)):
        raise UserError(
            f"network: this {name} generates [{channels}, frames, height, width] in patches of {list(patch)}, and the "
            f"action of group {group.name!r} has shape {list(event)}"
        )
    if config.get("out_channels") not in (None, config.in_channels):
        raise UserError(f"network: this {name} has {config.in_channels} channels in and {config.out_channels} out")
    space = group.observation.get(velocity.condition)
    shape = None if space is None else space.shape
    if shape is None:
        raise UserError(
            f"network.condition: group {group.name!r} observes {', '.join(group.observation)}, and no "
            f"{velocity.condition!r}"
        )
    width = config[family.text]
    if len(shape) != 2 or shape[1] != width:
        raise UserError(
            f"network.condition: this {name} reads [tokens, {width}], and leaf {velocity.condition!r} has shape "
            f"{list(shape)}"
        )
