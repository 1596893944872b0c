"""What an audit is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from marl_tr.equilibrium.solo import Payoff
from marl_tr.errors import UserError

__all__ = ["ALL_REFERENCES", "AuditSettings"]

ALL_REFERENCES = "references"
"""Among `AuditSettings.controls`: every reference policy of the environment."""


@dataclass(frozen=True)
class AuditSettings:
    """How hard best responses are looked for, and how they are measured.

    Attributes:
        agents: Who may deviate; None: everybody.
        symmetric: Let each audited agent stand for its whole group in NashConv: an assumption, and said to be one.
        fresh: Responders a gap that begin anew.
        warm: Responders a gap that begin at the agent's own policy.
        budget: Environment steps of each responder before the first doubling; None: a quarter of the run's own.
        doublings: How often the budget is doubled at most while a gap grows; at least 1.
        tolerance: A gap has stopped growing once a doubling adds less than this share of
            ``max(|J_i(pi) - J_i(random)|, |gap|)``, or less than two standard errors.
        validation_episodes: Paired episodes that responders are chosen by.
        episodes: Fresh paired episodes that the chosen ones are measured on.
        seed: Every random number of the audit follows from it.
        payoff: What agents are after; None: what the run learned from (``env.reward``).
        controls: Joint policies that the same auditor is tried on: ``random``, names of the environment's reference
            policies, or `ALL_REFERENCES`. They are audited for the first of `agents` alone.
        deviations: Policies that stand beside the responders without having learned: named as `controls` are.
        omniscient: Also train responders that see the global state.
        learner: ``"section.key=value"``, over the responders' scenario.
    """

    agents: tuple[str, ...] | None = None
    symmetric: bool = False
    fresh: int = 3
    warm: int = 3
    budget: int | None = None
    doublings: int = 2
    tolerance: float = 0.02
    validation_episodes: int = 256
    episodes: int = 512
    seed: int = 0
    payoff: Payoff | None = None
    controls: tuple[str, ...] = ("random", ALL_REFERENCES)
    deviations: tuple[str, ...] = ("random", ALL_REFERENCES)
    omniscient: bool = False
    learner: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse numbers that make no audit.

        Raises:
            UserError: Says which.
        """
        for name, least in (("fresh", 0), ("warm", 0), ("doublings", 1), ("validation_episodes", 2), ("episodes", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.fresh + self.warm < 1:
            raise UserError("no responders: fresh and warm are both 0")
        if self.budget is not None and self.budget < 1:
            raise UserError(f"budget must be at least 1 environment step, not {self.budget}")
        if not 0 <= self.tolerance < 1:
            raise UserError(f"tolerance must be in [0, 1), not {self.tolerance}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be in [0, 2**63), not {self.seed}")
        if self.agents is not None and (not self.agents or len(set(self.agents)) != len(self.agents)):
            raise UserError(f"agents must be names, each once, not {', '.join(self.agents) or 'none'}")

    def plain(self) -> dict[str, Any]:
        """As JSON can say it."""
        data = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
