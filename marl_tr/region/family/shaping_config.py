"""Settings of the mechanisms that shape ratios, or what the probability of an action allows them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marl_tr.region.config import ReshapedConfig, Status

__all__ = [
    "A3poConfig",
    "ApoConfig",
    "BandpoConfig",
    "DispoConfig",
    "DppoConfig",
    "MaspoConfig",
    "MassConfig",
    "PspoConfig",
    "R2vpoConfig",
]


class MassConfig(ReshapedConfig):
    """Mechanisms that go by how probable the action was; what they need of the agents hangs on `mass`."""

    mass: Literal["exact", "tail"] = Field(
        default="exact",
        description="Probability of the action taken: 'exact', of agents whose actions are choices; 'tail', of "
        "Gaussian laws and flows, the old policy's probability of an action less likely than it (ours, not of the "
        "paper).",
    )

    @property
    def reads_mass(self) -> bool:
        """Whether these settings make use of it."""
        return True

    @property
    def requires(self) -> frozenset[str]:  # type: ignore[override]  # elsewhere it hangs on no setting
        """Capabilities that the agents need."""
        extra = {"exact": "mass", "tail": "gaussian"}[self.mass]
        return frozenset({"log_prob", extra} if self.reads_mass else {"log_prob"})

    @property
    def needs(self) -> frozenset[str]:
        """The tail is the old law's."""
        return frozenset({"old_law"} if self.reads_mass and self.mass == "tail" else ())

    @property
    def instead(self) -> str:
        """How to do with other agents."""
        if not self.reads_mass:
            return ""
        return {
            "exact": "'mass: tail', where actions are vectors and laws Gaussian (flows are)",
            "tail": "'mass: exact', where actions are choices",
        }[self.mass]


class DppoConfig(MassConfig):
    """Divergence proximal policy optimization (arXiv 2602.04879): what has gone too far is masked out."""

    paper: ClassVar[str] = "2602.04879"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "none"

    divergence: Literal["binary_tv", "binary_kl", "top_k_tv", "top_k_kl", "full_tv", "full_kl"] = Field(
        default="binary_tv",
        description="Of a decision, from the old law: of the action taken against the rest; of the old law's top_k "
        "choices, the one taken and the rest; or of the full laws, which flows and Gaussians have too.",
    )
    threshold: float | None = Field(
        default=None, gt=0, description="From which divergence on a good action is masked out; empty: TV 0.15, KL 0.05."
    )
    threshold_low: float | None = Field(default=None, gt=0, description="The same of bad actions; empty: as good ones.")
    top_k: int = Field(default=20, ge=1, description="K of the 'top_k' divergences.")
    truncation: float = Field(
        default=20.0, ge=1, description="What a ratio weighs at most (verl: 20; official code: 10)."
    )

    @property
    def reads_mass(self) -> bool:
        """Of the binary divergences."""
        return self.divergence.startswith("binary")

    @property
    def requires(self) -> frozenset[str]:  # type: ignore[override]
        """Capabilities that the agents need."""
        if self.reads_mass:
            return super().requires
        return frozenset({"log_prob", "kl" if self.divergence.startswith("full") else "mass"})

    @property
    def needs(self) -> frozenset[str]:
        """The old law, of all but a binary divergence of choices."""
        return super().needs if self.reads_mass else frozenset({"old_law"})

    @property
    def instead(self) -> str:
        """How to do with other agents."""
        if self.divergence.startswith("full"):
            return ""
        other = super().instead
        return f"{other}; or 'divergence: full_kl'" if other else "'divergence: full_kl'"

    @property
    def limits(self) -> tuple[float, float]:
        """Of good actions and of bad ones."""
        usual = 0.15 if self.divergence.endswith("tv") else 0.05
        high = usual if self.threshold is None else self.threshold
        return high, high if self.threshold_low is None else self.threshold_low


class BandpoConfig(MassConfig):
    """BandPO (arXiv 2603.04918): the clip's interval is what a divergence leaves an action of that probability."""

    paper: ClassVar[str] = "2603.04918"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "none"

    divergence: Literal["kl", "tv", "chi2"] = Field(default="kl", description="KL(old||new), TV or chi-squared.")
    radius: float = Field(default=0.05, gt=0, description="How much of it, a decision.")
    relaxed: bool = Field(
        default=False,
        description="No interval narrower than [0.8, 1.28], none beyond 100: the released default, nowhere tighter "
        "than Clip-Higher.",
    )


class MaspoConfig(MassConfig):
    """MASPO (arXiv 2602.17550): a smooth gate on overshooting ratios, wider for improbable actions."""

    paper: ClassVar[str] = "2602.17550"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "none"

    width: float = Field(
        default=1.0, gt=0, description="Width of the gate at probability 1; improbable actions only widen it."
    )
    mass_power: float = Field(default=0.3, ge=0, description="alpha: the width grows as probability^-alpha, up to 10.")
    good: float = Field(default=0.03, ge=0, description="How much wider a unit of advantage makes it, of good actions.")
    bad: float = Field(default=0.03, ge=0, description="How it narrows for bad actions: to 1 / (1 - bad A) of that.")
    attached: bool = Field(
        default=False,
        description="Whether a gradient leads through the gate. As published it does, in the released code it does "
        "not; with it overshooting good actions are pushed back.",
    )


class R2vpoConfig(ReshapedConfig):
    """R2VPO (arXiv 2601.03320): the variance of the ratio is held down by a multiplier."""

    paper: ClassVar[str] = "2601.03320"
    status: ClassVar[Status] = "second-hand"
    guarantee: ClassVar[str] = "soft"

    limit: float = Field(default=0.04, gt=0, description="delta, of the mean of (ratio - 1)^2.")
    multiplier: float = Field(default=0.04, ge=0, description="lambda at the start of the run.")
    rate: float = Field(default=0.1, ge=0, description="eta, of the multiplier; 0: it stays.")
    most: float = Field(default=100.0, gt=0, description="The multiplier goes no higher.")
    every: Literal["step", "update"] = Field(
        default="step", description="Whether it moves after each optimizer step, or once at the end of the update."
    )


class PspoConfig(ReshapedConfig):
    """PSPO (arXiv 2509.21282): ratios of the policy smoothed toward the old one; a smaller rate, no region."""

    paper: ClassVar[str] = "2509.21282"
    status: ClassVar[Status] = "second-hand"
    guarantee: ClassVar[str] = "none"

    smoothing: float = Field(default=0.1, ge=0, lt=1, description="alpha: share of the old policy in the mixture.")


class DispoConfig(ReshapedConfig):
    """DISPO (arXiv 2602.00983): REINFORCE with clipped weights, four bounds for good and bad actions."""

    paper: ClassVar[str] = "2602.00983"
    status: ClassVar[Status] = "second-hand"
    guarantee: ClassVar[str] = "none"

    good_low: float = Field(default=0.2, ge=0, description="Good actions weigh at least 1 minus this.")
    good_high: float = Field(default=10.0, ge=0, description="Good actions weigh at most 1 plus this.")
    bad_low: float = Field(default=1.0, ge=0, description="Bad actions weigh at least 1 minus this.")
    bad_high: float = Field(default=100.0, ge=0, description="Bad actions weigh at most 1 plus this.")


class ApoConfig(ReshapedConfig):
    """Anchored policy optimization (arXiv 2602.05717, not the preference method): what a bad action loses goes to
    choices that a reference holds likely."""

    paper: ClassVar[str] = "2602.05717"
    status: ClassVar[Status] = "second-hand"
    guarantee: ClassVar[str] = "soft"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob", "mass"})
    needs: ClassVar[frozenset[str]] = frozenset({"old_law"})

    reference: Literal["old", "anchor"] = Field(
        default="old",
        description="Whose likely choices: 'old', of the policy that acted (ours); 'anchor', of the anchor of the "
        "first regulariser of kind 'position' (frozen: the start of the run; with weight 0 it does nothing else).",
    )
    top_k: int = Field(default=8, ge=2, description="How many choices of the reference are safe.")
    push: float = Field(default=1.05, gt=0, description="lambda, of a bad action's own ratio.")
    pull: float = Field(default=0.1, ge=0, description="beta, of the safe choices' ratio.")
    clip: float = Field(default=0.2, gt=0, lt=1, description="How far below 1 the ratio's interval reaches.")
    clip_high: float | None = Field(default=None, gt=0, description="How far above; empty: as far.")

    @property
    def needs_anchor(self) -> bool:
        """Whether the scenario must have a regulariser with an anchor."""
        return self.reference == "anchor"


class A3poConfig(ReshapedConfig):
    """A-3PO (arXiv 2512.06547): clipped ratios to an anchor that goes along with the policy."""

    paper: ClassVar[str] = "2512.06547"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "none"

    clip: float = Field(default=0.2, gt=0, lt=1, description="How far below 1 the ratio's interval reaches.")
    clip_high: float | None = Field(default=None, gt=0, description="How far above; empty: as far.")
    cap: float = Field(default=5.0, ge=1, description="What the anchor's ratio to the old policy weighs at most.")
    interpolation: Literal["log_linear", "linear"] = Field(
        default="log_linear", description="Of log-probabilities, or of probabilities."
    )
