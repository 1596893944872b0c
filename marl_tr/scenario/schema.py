"""What a scenario may say: every section, every field, its unit, range and default.

A *part* is a section whose fields depend on its `kind`: ``region: {kind: trpo, bound: 0.01}``. The registry
entry of that kind names the model of the other fields; the loader validates them with it and keeps the result
as `Part.config`.

An entry of `agents` may have an objective, a region and an optimizer of its own; what holds for it is said by
`Scenario.objective_of`, `region_of` and `optimizer_of`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, model_validator

from marl_tr.scenario.optimizer import OptimizerSection
from marl_tr.scenario.regularisers import RegulariserConfig
from marl_tr.scenario.strict import Strict
from marl_tr.scenario.transforms import TrustGrpoConfig

__all__ = [
    "ENTRY_PARTS",
    "PARTS",
    "AdvantageSection",
    "AgentPart",
    "EnvSection",
    "EvaluationSection",
    "OptimizerSection",
    "Part",
    "PretrainingSection",
    "Scenario",
    "Strict",
    "TrainerSection",
]


class Part(BaseModel):
    """A section whose remaining fields are those of its `kind`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    kind: str = Field(description="Registered name, or 'package.module:factory'.")

    _config: Any = PrivateAttr(default=None)

    @property
    def config(self) -> Any:
        """The validated settings: the registry entry's config model (a dict where it has none)."""
        return self._config


class AgentPart(Part):
    """The policies of the agents that `select` matches."""

    select: list[str] = Field(
        default=["*"],
        min_length=1,
        description="Agent names or shell patterns; an agent takes the first entry that matches it.",
    )
    sharing: Literal["none", "all"] = Field(
        default="none",
        description="'none': each agent its own parameters; 'all': one set for the agents of a group.",
    )
    objective: Part | None = Field(
        default=None, description="What updates of these agents want; empty: the scenario's."
    )
    region: Part | None = Field(default=None, description="What bounds them; empty: the scenario's.")
    optimizer: OptimizerSection | None = Field(
        default=None, description="Their gradient steps, all defaults where it says nothing; empty: the scenario's."
    )


class EnvSection(Strict):
    """The environment."""

    id: str = Field(description="Registered name ('marl-tr envs' lists them), or 'package.module:factory'.")
    num_envs: int = Field(default=16, ge=1, le=65_536, description="Parallel copies E.")
    reward: Literal["own", "mean", "sum"] = Field(
        default="own",
        description="The reward learned from: each agent's own, or the mean or sum over the living.",
    )
    rebuild: bool = Field(
        default=False,
        description="Build each copy anew for every episode: for those that remember something beyond a reset.",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="The environment's own settings.")
    backend: Literal["in_process", "workers"] = Field(
        default="in_process",
        description="Where copies are stepped: one after the other in this process, or in worker processes side by "
        "side, which pays where stepping takes longer than learning. Results are the same. Native environments "
        "(all copies at once) have no use for workers.",
    )
    workers: int | None = Field(
        default=None, ge=1, le=1024, description="Worker processes, at most num_envs; empty: one a core."
    )

    _config: Any = PrivateAttr(default=None)

    @property
    def settings(self) -> Any:
        """`config`, validated: the registry entry's config model (the plain dict where it has none)."""
        return self.config if self._config is None else self._config


class AdvantageSection(Strict):
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438), cohort-relative returns, or both."""

    estimator: Literal["gae", "cohort", "mixed"] = Field(
        default="gae",
        description="'gae': from the critic; 'cohort': an episode's return against those of its cohort, in their "
        "standard deviations (GRPO, arXiv 2402.03300); 'mixed': a weighted sum of both.",
    )
    gamma: float = Field(default=0.99, ge=0, le=1, description="Discount an environment step, whoever moves in it.")
    lam: float = Field(default=0.95, ge=0, le=1, description="GAE's lambda, an environment step.")
    normalise: bool = Field(
        default=True,
        description="Zero mean, unit standard deviation of GAE over each learner's batch (policy step only); "
        "cohort-relative advantages are in units of their own.",
    )
    cohort_weight: float = Field(default=0.5, ge=0, le=1, description="Of the cohort's part in 'mixed'.")
    cohort_clip: float = Field(default=5.0, gt=0, description="Cohort-relative advantages are clipped to +- this.")
    transform: TrustGrpoConfig | None = Field(
        default=None, description="Of the scores that cohorts are compared by; empty: they are the returns."
    )
    failed: Literal["error", "exclude"] = Field(
        default="error",
        description="A reward that is not finite ends the run, or its episode is left out of everything (a reward "
        "model that failed on one sample).",
    )

    @model_validator(mode="after")
    def _of_cohorts(self) -> Self:
        if self.transform is not None and self.estimator == "gae":
            raise ValueError("transform is of the scores that cohorts compare; set estimator: cohort (or mixed)")
        return self


class TrainerSection(Strict):
    """The loop."""

    total_steps: int = Field(description="Environment steps of the whole run (all copies together).", ge=1)
    rollout_steps: int = Field(default=128, ge=1, le=100_000, description="Steps T of each copy between updates.")
    threads: int = Field(default=1, ge=1, le=256, description="torch's threads; part of what makes a run repeatable.")
    device: str = Field(default="cpu", description="torch device of networks and learning, 'cpu' or 'cuda'.")
    checkpoint_every: int = Field(default=20, ge=1, description="Iterations between checkpoints.")
    keep_checkpoints: int = Field(default=3, ge=1, description="How many of the newest checkpoints stay on disk.")
    runs_dir: Annotated[str, StringConstraints(min_length=1)] = Field(
        default="runs", description="Folder that gets a folder a run."
    )


class PretrainingSection(Strict):
    """Flow matching on an environment's own data ('marl-tr pretrain'); 'marl-tr run' leaves it alone."""

    steps: int = Field(default=10_000, ge=1, description="Optimizer steps.")
    batch: int = Field(default=32, ge=1, le=65_536, description="Samples a step.")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="'muon' moves the matrices of numbered layers, AdamW the rest."
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="AdamW's, after a warm-up of 2 % of the steps.")
    muon_learning_rate: float = Field(default=2e-3, gt=0, le=1, description="Muon's, scaled to AdamW's step sizes.")
    decay: float = Field(default=0.5, ge=0, le=1, description="Last share of the steps, in which the rate falls to 0.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled, times the learning rate.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradient norm, clipped above.")
    ema: float = Field(default=0.9995, ge=0, lt=1, description="Decay of the average of weights that is kept.")
    shift: float = Field(default=3.0, ge=1, le=100, description="Of the noise levels: s = shift u / (1 + (shift-1) u).")
    drop_condition: float = Field(
        default=0.1, ge=0, lt=1, description="Share of samples without a condition, for classifier-free guidance."
    )
    save_every: int = Field(default=1000, ge=1, description="Steps between checkpoints (and measures).")


class EvaluationSection(Strict):
    """Held-out episodes."""

    every: int = Field(default=10, ge=0, description="Iterations between evaluations; 0: only at the end.")
    episodes: int = Field(default=64, ge=1, le=65_536, description="Episodes of an evaluation during the run.")
    final_episodes: int = Field(default=256, ge=1, le=65_536, description="Episodes of the evaluation at the end.")
    seed: int = Field(
        default=1_000_003,
        ge=0,
        lt=2**63,
        description="Seed of the held-out episodes, the same in every evaluation.",
    )
    policies: list[Literal["sampled", "mode"]] = Field(
        default=["sampled", "mode"],
        min_length=1,
        description="How actions are drawn; the first is the headline.",
    )
    window: int | None = Field(
        default=None, ge=1, description="Also report the mean reward a step over the last `window` steps."
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Evaluate an average of each learner's committed parameters, of this decay an update; empty: the "
        "parameters themselves.",
    )
    opponents: list[Literal["random"]] = Field(
        default=[],
        description="Also play against each of these, from every seat in turn: the learned policies in one seat, the "
        "opponent in all others.",
    )
    seats: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        default={},
        description="Agent names or shell patterns by name of seat; an agent takes the first seat that matches it. "
        "Empty: each group of agents a seat, or each agent where there is one group.",
    )
    references: bool = Field(default=True, description="Evaluate the environment's reference policies beside ours.")
    media: bool = Field(default=True, description="Pictures at each evaluation: an episode, attention, chains.")


class Scenario(Strict):
    """A run, whole."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)] = Field(
        description="Names the folder of its runs."
    )
    description: str = Field(default="", description="One sentence for 'marl-tr scenarios'.")
    preset: str | None = Field(
        default=None,
        description="mappo, ippo, happo, hatrpo, matrl or matrpo: fills in objective, region, schedule, sharing and "
        "critic; what the file says itself wins.",
    )
    seed: int = Field(default=1, ge=0, lt=2**63, description="Every random number of the run follows from it.")
    env: EnvSection
    agents: list[AgentPart] = Field(min_length=1, description="Policies, one entry or a list of entries.")
    objective: Part = Field(description="What an update wants ('marl-tr objectives').")
    region: Part = Field(description="What bounds it ('marl-tr regions').")
    schedule: Part = Field(description="How several learners update ('marl-tr schedules').")
    critic: Part = Field(description="The critic's encoder and fit ('marl-tr critics').")
    advantage: AdvantageSection = AdvantageSection()
    optimizer: OptimizerSection | None = Field(
        default=None,
        description="Required by regions without a step of their own; refused where every region has one.",
    )
    regularisers: list[RegulariserConfig] = Field(
        default=[],
        description="What holds the policies near others while they learn, and smooth: position, velocity and smooth "
        "terms.",
    )
    trainer: TrainerSection
    evaluation: EvaluationSection = EvaluationSection()
    pretraining: PretrainingSection | None = Field(
        default=None, description="How 'marl-tr pretrain' trains the flow on the environment's data."
    )

    def objective_of(self, entry: AgentPart) -> Part:
        """What updates of the entry's agents want: its own objective, else the scenario's."""
        return self.objective if entry.objective is None else entry.objective

    def region_of(self, entry: AgentPart) -> Part:
        """What bounds them: its own region, else the scenario's."""
        return self.region if entry.region is None else entry.region

    def optimizer_of(self, entry: AgentPart) -> OptimizerSection | None:
        """Their gradient steps: its own optimizer, else the scenario's; None where its region takes its own step."""
        if getattr(self.region_of(entry).config, "takes_own_step", False):
            return None
        return self.optimizer if entry.optimizer is None else entry.optimizer

    def regularisers_of(self, entry: AgentPart) -> list[RegulariserConfig]:
        """The regularisers that the entry's agents can serve; all where its kind does not declare what it can say."""
        offered = getattr(entry.config, "capabilities", None)
        return [term for term in self.regularisers if offered is None or term.requires <= offered]


PARTS: dict[str, str] = {
    "agents": "agents",
    "objective": "objectives",
    "region": "regions",
    "schedule": "schedules",
    "critic": "critics",
}
"""Sections that are parts, and the registry kind that each draws from."""

ENTRY_PARTS: tuple[str, ...] = ("objective", "region")
"""Parts that an entry of `agents` may have of its own."""
