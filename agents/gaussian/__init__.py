"""Plain actors with an explicit density: the baselines."""

from marl_tr.registry import Entry

__all__ = ["AGENTS"]

AGENTS = {
    "gaussian": Entry(
        target="marl_tr.agents.gaussian.agent:make",
        config="marl_tr.agents.gaussian.config:GaussianConfig",
        summary="stacked MLP or GRU actors; Gaussian, mixture, Beta or categorical law",
    ),
}
