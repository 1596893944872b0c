"""How far every trust region lets an adversary go: 500 updates each, hard limits and measured overshoot.

    python benchmarks/region_bounds.py [--updates 500] [--bounded 100] [--only spo] [--laws gaussian categorical flow]

Every update has wild advantages (a scale from 1e-3 to 1e3, heavy tails), some actions that the policy finds very
unlikely (their ratios explode), a learning rate from 1e-3 to 0.1, two epochs of two minibatches, and no clipping of
gradients. Policies drift on from update to update, and begin anew where one has left all numbers behind.

Two runs a region and law: as it is, for its own measure (`reach`: largest |ratio - 1|, largest KL of a decision, ...),
and with `bound: 0.01`, which makes any region hard in the mean KL. What is written down is of what was in force after
the Guard, measured anew. Cases that the results already hold are kept, unless `--only` names their region.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from marl_tr.errors import Diverged
from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import PolicyBatch, Rows
from marl_tr.region.guard import Guard
from marl_tr.region.turn import Learners, Turn
from marl_tr.registry import find, names
from marl_tr.scenario.schema import OptimizerSection
from marl_tr.vector.contract import GroupSpec

RESULTS = Path(__file__).parent / "results" / "region_bounds.json"
BOUND = 0.01
TOLERANCE = 1e-5
FEATURES, STEPS, COPIES, AGENTS = 4, 3, 6, 2
_TAIL = {"gaussian": {"mass": "tail"}, "flow": {"mass": "tail"}}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "dppo": _TAIL,
    "bandpo": _TAIL,
    "maspo": _TAIL,
    "directional": {law: {"apply": "update", "commits": 3} for law in ("gaussian", "categorical", "flow")},
}
"""Settings without which a region does not serve a law, or promises nothing."""
SPACES: dict[str, spaces.Space[Any]] = {
    "gaussian": spaces.Box(-1, 1, (2,)),
    "categorical": spaces.Discrete(5),
    "flow": spaces.Box(-np.inf, np.inf, (2,)),
}


def policy_of(
    law: str, region: Any, generator: torch.Generator, *, shared: bool | None = None, hidden: Sequence[int] = (8,)
) -> Any:
    """A small policy; as the region deploys it where that is another one. Flows share parameters unless told."""
    entry = find("agents", "flow" if law == "flow" else "gaussian")
    settings: dict[str, Any] = {"hidden": list(hidden), "head_gain": 0.5}
    if law == "flow":
        settings = {"steps": 4, "network": {"kind": "mlp", "hidden": [8, 8]}}
    group = GroupSpec(
        name="group",
        agents=tuple(f"agent_{i}" for i in range(AGENTS)),
        observation={"observation": spaces.Box(-np.inf, np.inf, (FEATURES,))},
        action={"action": SPACES[law]},
    )
    config: Any = entry.load_config()
    rows = Rows(agents=AGENTS, shared=law == "flow" if shared is None else shared)
    policy = entry.load()(config(**settings), group, rows=rows, generator=generator, device=torch.device("cpu"))
    deployed = getattr(region, "deployed", None)
    return policy if deployed is None else deployed(policy)


def play(policy: Any, law: str, generator: torch.Generator) -> PolicyBatch:
    """One episode a copy; every eighth action is one that the policy hardly ever takes."""
    rows = policy.rows
    shape = (STEPS, COPIES, AGENTS)
    observation = rows.to_rows(torch.randn(*shape, FEATURES, generator=generator))
    records = []
    for t in range(STEPS):
        with torch.no_grad():
            records.append(policy.act({"observation": observation[:, t]}, None, generator).record)
    record = {leaf: torch.stack([r[leaf] for r in records], 1) for leaf in records[0]}
    odd = torch.rand(observation.shape[:3], generator=generator) < 0.125
    if law == "gaussian":
        record["action"] = torch.where(odd.unsqueeze(-1), 4 * record["action"], record["action"])
    elif law == "categorical":
        record["action"] = torch.where(odd, torch.randint(0, 5, odd.shape, generator=generator), record["action"])
    starts = torch.zeros(observation.shape[:3], dtype=torch.bool)
    starts[:, 0] = True
    mask = torch.rand(observation.shape[:3], generator=generator) < 0.9
    return PolicyBatch(observation={"observation": observation}, record=record, memory=None, starts=starts, mask=mask)


def turn_of(learners: Learners, batch: PolicyBatch, generator: torch.Generator, *, scale: float | None = None) -> Turn:
    """Wild advantages (with a scale: tame ones), and labels for whoever asks."""
    shape, everybody = batch.mask.shape, list(range(len(learners.names)))
    tails = 1.0
    if scale is None:
        scale = 10 ** (6 * float(torch.rand((), generator=generator)) - 3)
        tails = 1 / torch.rand(shape, generator=generator).clamp_min(1e-2)
    advantage = scale * tails * torch.randn(shape, generator=generator)
    score = (scale * torch.randn(shape[0], 1, shape[2], generator=generator)).expand(shape)
    with torch.no_grad():
        old = learners.policy.evaluate(learners.parameters(everybody), batch)
    return Turn(
        learners=learners,
        rows=tuple(everybody),
        batch=batch,
        advantage=advantage,
        objective=Surrogate(SurrogateConfig()),
        old=old,
        generator=generator,
        labels={
            "cohort": (torch.arange(shape[2]) // 2).expand(shape),
            "score": score,
            "raw_advantage": advantage,
        },
    )


def region_of(name: str, rate: float, **settings: Any) -> Any:
    entry = find("regions", name)
    config: Any = entry.load_config()
    if "subsample" in config.model_fields:
        # Of few decisions a share says nothing of the rest, and nearly every line search would fail.
        settings |= {"subsample": 1.0}
    steps = OptimizerSection(learning_rate=rate, epochs=2, minibatches=2, max_grad_norm=None)
    return entry.load()(config(**settings), None if getattr(config, "takes_own_step", False) else steps)


def serves(name: str, law: str) -> bool:
    region = region_of(name, 1e-3, **OPTIONS.get(name, {}).get(law, {}))
    return bool(region.requires <= policy_of(law, None, torch.Generator().manual_seed(0)).capabilities)


def attacked(name: str, law: str, updates: int, **settings: Any) -> dict[str, Any]:
    """The updates of one region on one kind of policy."""
    generator = torch.Generator().manual_seed(0)
    learners: Learners | None = None
    reached: list[float] = []
    mean_kl: list[float] = []
    largest_kl: list[float] = []
    outcomes: dict[str, int] = {}
    what, limit, restarts = "", float("nan"), 0
    for update in range(updates):
        region = region_of(name, 0.1 * 10 ** (-2 * float(torch.rand((), generator=generator))), **settings)
        if learners is None or not usable(learners):
            restarts += learners is not None
            policy = policy_of(law, region, torch.Generator().manual_seed(update))
            learners = Learners(policy, [f"learner_{row}" for row in range(policy.rows.learners)])
        turn = turn_of(learners, play(learners.policy, law, generator), generator)
        try:
            candidate = region.propose(turn)
        except Diverged:
            # As in a run: it ends, and nothing was committed.
            outcomes["diverged"] = outcomes.get("diverged", 0) + len(turn.rows)
            learners = None
            restarts += 1
            continue
        reports = Guard(lambda line: None).accept(region, turn, candidate)
        measured = turn.measure(learners.parameters(turn.rows))
        mean_kl += measured.divergence.tolist()
        largest_kl += [report.measures[f"region/max_divergence/{report.learner}"] for report in reports]
        for report in reports:
            outcomes[report.outcome] = outcomes.get(report.outcome, 0) + 1
        if hasattr(region, "reach"):
            reach = region.reach(turn, measured)
            what, limit = reach.what, reach.limit
            # The report's: some measure a step, of which nothing is left once it is in force.
            reached += [report.measures[f"region/reach/{report.learner}"] for report in reports]
    found: dict[str, Any] = {
        "guarantee": region.own_guarantee if getattr(region, "own_guarantee", "") == "hard" else region.guarantee,
        "updates": updates,
        "measured": len(mean_kl),
        "outcomes": outcomes,
        "restarts": restarts,
        "mean_kl": spread(mean_kl),
        "largest_kl": spread(largest_kl),
    }
    if reached:
        found |= {"what": what, "limit": limit, "reach": spread(reached)}
        found["beyond"] = int(sum(value > limit + TOLERANCE for value in reached))
    return found


def usable(learners: Learners) -> bool:
    """Whether numbers are still of a size that laws can be made of."""
    return all(bool((p.abs() < 50).all()) for p in learners.parameters(range(len(learners.names))).values())


def spread(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "largest": float(np.max(values))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--bounded", type=int, default=100, help="updates of the second run")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--laws", nargs="*", default=["gaussian", "categorical", "flow"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"cases": {}}
    for name in names("regions"):
        for law in arguments.laws:
            if (arguments.only and name not in arguments.only) or not serves(name, law):
                continue
            if f"{name}, {law}" in known["cases"] and not arguments.only:
                continue
            began = time.perf_counter()
            extra = OPTIONS.get(name, {}).get(law, {})
            found = attacked(name, law, arguments.updates, **extra)
            bounded = attacked(name, law, arguments.bounded, bound=BOUND, **extra)
            found["bounded"] = {
                "largest": bounded["mean_kl"]["largest"],
                "beyond": bounded["mean_kl"]["largest"] > BOUND + TOLERANCE,
                "outcomes": bounded["outcomes"],
            }
            known["cases"][f"{name}, {law}"] = found
            arguments.out.write_text(json.dumps(known, indent=1) + "\n")
            print(f"{name}, {law}: {told(found)} ({time.perf_counter() - began:.0f} s)", flush=True)


def told(found: dict[str, Any]) -> str:
    own = ""
    if "reach" in found:
        reach = found["reach"]
        own = (
            f"{found['what']} {reach['median']:.3g} median, {reach['largest']:.3g} largest of {found['limit']:.3g}, "
            f"{found['beyond']} beyond; "
        )
    kl = found["mean_kl"]
    return (
        f"{found['guarantee']}; {own}mean KL {kl['median']:.3g} median, {kl['largest']:.3g} largest; "
        f"with bound {BOUND}: {found['bounded']['largest']:.6f}"
    )


if __name__ == "__main__":
    main()
