"""Settings of the mechanisms that project laws into a region around the old one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from marl_tr.region.config import ReshapedConfig, Status

__all__ = ["TrollConfig", "TrplConfig"]


class TrplConfig(ReshapedConfig):
    """Trust region projection layers (arXiv 2101.09207): the law that acts is projected, decision by decision."""

    paper: ClassVar[str] = "2101.09207"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "hard"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl", "gaussian"})
    needs: ClassVar[frozenset[str]] = frozenset({"old_law"})
    refuses_settings: ClassVar[Mapping[str, tuple[object, str]]] = {
        "agents.network": ("gru", "earlier networks would need memories of their own; use 'mlp'"),
        "agents.normalise_observation": (
            True,
            "statistics of inputs would change earlier networks; leave it out",
        ),
        "optimizer.kind": ("muon", "it would move the anchors; use 'adam'"),
    }

    projection: Literal["kl", "w2", "frobenius"] = Field(
        default="kl",
        description="What mean and covariance are held to: the two parts of KL(new||old), of the Wasserstein distance "
        "scaled by the old covariance, or Mahalanobis and Frobenius distances.",
    )
    mean_bound: float = Field(
        default=0.03,
        gt=0,
        description="Of the mean's distance, a decision; kl: in nats; w2, frobenius: its square, in old deviations.",
    )
    cov_bound: float = Field(
        default=1e-3,
        gt=0,
        description="Of the covariance's distance, a decision; without effect on flows, whose scale is fixed.",
    )
    alpha: float = Field(
        default=1.0, ge=0, description="Weight of the distance from the network's law to its projection."
    )
    depth: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Earlier networks that the acting law is projected onto in turn; each costs a forward pass an "
        "action. What is older is forgotten.",
    )
    fit_steps: int = Field(
        default=50,
        ge=0,
        description="Steps at most of fitting one network to the law that acted, where forgetting an anchor would move "
        "that law too far; it then is the only anchor.",
    )


class TrollConfig(ReshapedConfig):
    """Trust regions for choices (arXiv 2510.03817): the loss sees a projected law, the network's own acts."""

    paper: ClassVar[str] = "2510.03817"
    status: ClassVar[Status] = "second-hand"
    guarantee: ClassVar[str] = "soft"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl", "mass"})
    needs: ClassVar[frozenset[str]] = frozenset({"old_law"})

    epsilon: float = Field(default=0.05, gt=0, description="KL(projected||old) a decision at most, in nats.")
    alpha: float = Field(
        default=1.0, ge=0, description="Weight of KL(network||projected), which pulls the network's law back."
    )
    top: int | None = Field(
        default=None,
        ge=1,
        description="Choices a branch that are kept apart: this many of the old law, as many of the new one, and the "
        "one taken; of the others the old law has one default probability, near 0. Empty: all are; published: 64, for "
        "laws that hardly go beyond.",
    )
