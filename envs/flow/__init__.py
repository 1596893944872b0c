"""Flow-generation environments: clips of moving shapes, and mixtures on known curves."""

from marl_tr.registry import Entry

__all__ = ["ENVIRONMENTS", "MODELS"]

ENVIRONMENTS = {
    "flow/moving_shapes-v0": Entry(
        target="marl_tr.envs.flow.video:make",
        config="marl_tr.envs.flow.config:MovingShapesConfig",
        native=True,
        summary="generate a clip of a shape that moves as asked, whole or segment by segment",
    ),
    "flow/mixture-v0": Entry(
        target="marl_tr.envs.flow.mixture:make",
        config="marl_tr.envs.flow.config:MixtureConfig",
        native=True,
        summary="generate points of a Gaussian mixture along a curve, whose exact flow is known",
    ),
}

MODELS = {
    "moving_shapes": Entry(
        target="marl_tr.envs.flow.models:moving_shapes",
        summary="video transformer pretrained on flow/moving_shapes-v0, level plain (1.1 M parameters)",
    ),
} | {
    f"mixture_{curve}": Entry(
        target=f"marl_tr.envs.flow.mixture_velocity:{curve}_velocity",
        summary=f"exact velocity of flow/mixture-v0 with curve: {curve}",
    )
    for curve in ("circle", "moons", "spiral")
}
