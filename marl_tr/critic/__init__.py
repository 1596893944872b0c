"""Critics: the centralized value function and its fits."""

from marl_tr.registry import Entry

__all__ = ["CRITICS"]

CRITICS = {
    "mlp": Entry(
        target="marl_tr.critic.mlp:MlpEncoder",
        config="marl_tr.critic.config:MlpCriticConfig",
        summary="concatenated observations and state, or (scope: local) each agent's own",
    ),
}
