"""What an audit says of itself: JSON, Markdown, scalars; and what it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marl_tr.equilibrium.auditor import AgentAudit, SubjectAudit
from marl_tr.equilibrium.cross_play import CrossPlay
from marl_tr.equilibrium.gaps import Interval
from marl_tr.trainer.showing import REPORT

__all__ = ["HEADING", "audit_summary", "cross_summary", "markdown", "remarks", "scalars", "write_section", "write_tags"]

HEADING = "## Equilibrium audit"
_WEAK = 0.9
"""An auditor that finds less than this share of an exact gap is said to be weak."""


def audit_summary(audit: SubjectAudit) -> dict[str, Any]:
    """An audit as JSON can say it."""
    return {
        "subject": audit.name,
        "omniscient": audit.omniscient,
        "nash_conv": None if audit.nash_conv is None else _interval(audit.nash_conv),
        "nash_conv_by_symmetry": audit.symmetric,
        "epsilon": _interval(audit.epsilon),
        "converged": audit.converged,
        "found": audit.found,
        "exact_nash_conv": audit.exact_nash_conv,
        "agents": {agent.agent: _agent(agent) for agent in audit.agents},
    }


def cross_summary(cross: CrossPlay) -> dict[str, Any]:
    """Cross-play as JSON can say it."""
    return {
        "pool": list(cross.pool),
        "returns": {agent: table.tolist() for agent, table in cross.tables.items()},
        "standard_errors": {agent: table.tolist() for agent, table in cross.errors.items()},
        "regret": cross.regret.tolist(),
        "equilibria_of_the_pool": list(cross.equilibria),
    }


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the numbers; a sentence or two each."""
    policy = report["policy"]
    told = [
        "A learned best response is one policy among all: every gap here is a lower bound of the true one, and a small "
        "gap is no proof of an equilibrium. A flat learning curve is none either."
    ]
    growing = [agent for agent, found in policy["agents"].items() if not found["converged"]]
    if growing:
        told.append(
            f"Not converged: the gap of {', '.join(growing)} still grew when the budget was last doubled, or a policy "
            "that did not learn is a better response than all responders. The true gap is likely larger than shown: "
            "audit again with a larger budget or more doublings."
        )
    if not policy["found"]:
        told.append(
            f"No responder was found to gain anything that these {report['settings']['episodes']} paired episodes tell "
            "from 0."
        )
    told += [_control_remark(control) for control in report["controls"]]
    if not report["controls"]:
        told.append("No positive control was run: nothing here says whether this auditor finds gaps that are there.")
    if policy["nash_conv_by_symmetry"]:
        told.append(
            "NashConv lets each audited agent stand for its whole group. Policies that learned apart need not be "
            "alike, so that is an assumption."
        )
    elif policy["nash_conv"] is None:
        told.append("Not every agent was audited: there is no NashConv, and epsilon is over those that were.")
    if report["omniscient"] is not None:
        told.append(
            "Omniscient responders see the global state, which the agents do not: what they gain is a diagnostic from "
            "above of what more information is worth, and no gap of this game."
        )
    return told


def markdown(report: Mapping[str, Any]) -> str:
    """The section of ``report.md``, heading included."""
    settings, policy = report["settings"], report["policy"]
    lines = [
        HEADING,
        "",
        f"Policies of step {report['step']:,}, stochastic; payoff: {report['payoff']} reward, undiscounted; "
        f"{settings['fresh']} fresh and {settings['warm']} warm responders an agent, from {report['budget']:,} "
        f"environment steps each, doubled at most {settings['doublings']} times; {settings['episodes']} paired test "
        "episodes.",
        "",
        *_table([policy, *report["controls"], *([report["omniscient"]] if report["omniscient"] else [])]),
        "",
        *(f"- {remark}" for remark in remarks(report)),
    ]
    if report["cross_play"] is not None:
        lines += ["", *_cross_table(report["cross_play"])]
    return "\n".join(lines) + "\n"


def scalars(report: Mapping[str, Any]) -> dict[str, float]:
    """By TensorBoard tag."""
    found: dict[str, float] = {}
    audits = {"policy": report["policy"]} | {f"control/{c['subject']}": c for c in report["controls"]}
    if report["omniscient"]:
        audits["omniscient"] = report["omniscient"]
    for name, audit in audits.items():
        for agent, own in audit["agents"].items():
            found |= _tagged(f"nash_gap/{name}/{agent}", own["gap"])
            if own["exact_gap"] is not None:
                found[f"nash_gap/{name}/{agent}/exact"] = own["exact_gap"]
        found |= _tagged(f"nash_gap/{name}/epsilon", audit["epsilon"])
        found[f"nash_gap/{name}/converged"] = float(audit["converged"])
        if audit["nash_conv"] is not None:
            found |= _tagged(f"nash_gap/{name}/nash_conv", audit["nash_conv"])
        if audit["exact_nash_conv"] is not None:
            found[f"nash_gap/{name}/nash_conv/exact"] = audit["exact_nash_conv"]
    return found


def write_tags(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the scalars to an event file of their own in the run's folder, at the step of its checkpoint."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), filename_suffix=".nash_gap")
    try:
        for tag, value in scalars(report).items():
            writer.add_scalar(tag, value, int(report["step"]))
    finally:
        writer.close()


def write_section(folder: Path, report: Mapping[str, Any]) -> bool:
    """Put the section into the run's report, in place of an older one; False where the run has no report yet."""
    path = folder / REPORT
    # A report says that a run is finished: one that goes on gets none.
    if not path.is_file():
        return False
    before, _, after = path.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")
    _, heading, rest = after.partition("\n## ")
    partial = path.with_suffix(".partial")
    partial.write_text(f"{before.rstrip()}\n\n{markdown(report)}{heading}{rest}", encoding="utf-8")
    partial.replace(path)
    return True


def _control_remark(control: Mapping[str, Any]) -> str:
    name, exact = control["subject"], control["exact_nash_conv"]
    known = {agent: own["exact_gap"] for agent, own in control["agents"].items() if own["exact_gap"] is not None}
    shares = [own["gap"]["estimate"] / own["exact_gap"] for own in control["agents"].values() if own["exact_gap"]]
    shown = ", ".join(f"{agent} {_shown(own['gap'])}" for agent, own in control["agents"].items())
    if known and not any(value > 1e-9 for value in known.values()):
        return f"Positive control {name!r}: {shown}. It leaves nothing to gain here (exactly), so it controls nothing."
    if exact is not None and shares and min(shares) < _WEAK:
        return (
            f"Weak auditor: on {name!r} it found {min(shares):.0%} of an exact gap ({shown}). Raise the budget before "
            "believing a small gap."
        )
    ready_made = [agent for agent, own in control["agents"].items() if not own["learned"]]
    if control["found"] and ready_made:
        best = max(level["gap"] for agent in ready_made for level in control["agents"][agent]["levels"])
        return (
            f"Weak learner: on {name!r} a gap is found ({shown}), but by a policy that was there; the best responder "
            f"that learned gained {best:.4g} on the validation episodes. Raise the budget before believing a small gap."
        )
    if control["found"]:
        found = f", {min(shares):.0%} of the exact gap at least" if shares else ""
        return f"Positive control {name!r}: the same auditor finds a gap ({shown}{found})."
    return (
        f"Weak auditor, or nothing to gain: on {name!r} the same auditor finds no gap ({shown}). A small gap of the "
        "policies then says little."
    )


def _table(audits: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| joint policy | agent | gap [95 % CI] | exact | of what it learned | return | best responder | converged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for audit in audits:
        name = f"{audit['subject']}, omniscient responders" if audit["omniscient"] else audit["subject"]
        for agent, own in audit["agents"].items():
            exact = "-" if own["exact_gap"] is None else f"{own['exact_gap']:.4g}"
            share = "-" if own["relative_gap"] is None else f"{own['relative_gap']:.1%}"
            lines.append(
                f"| {name} | {agent} | {_shown(own['gap'])} | {exact} | {share} | {own['return_policy']:.4g} | "
                f"{own['responder']} | {_converged(own)} |"
            )
        whole = "-" if audit["exact_nash_conv"] is None else f"{audit['exact_nash_conv']:.4g}"
        if audit["nash_conv"] is not None:
            how = "NashConv, by symmetry" if audit["nash_conv_by_symmetry"] else "NashConv"
            lines.append(f"| {name} | {how} | {_shown(audit['nash_conv'])} | {whole} | | | | |")
        lines.append(f"| {name} | epsilon | {_shown(audit['epsilon'])} | | | | | |")
    return lines


def _converged(own: Mapping[str, Any]) -> str:
    return f"to within {own['resolution']:.2g}" if own["converged"] else "no"


def _cross_table(cross: Mapping[str, Any]) -> list[str]:
    pool = cross["pool"]
    lines = []
    for agent, table in cross["returns"].items():
        lines += [
            f"Cross-play, return of {agent}: row: whose policy it has; column: whose all others have",
            "",
            f"| {agent} | {' | '.join(pool)} |",
            "|---|" + "---|" * len(pool),
            *(
                f"| {name} | {' | '.join(f'{value:.4g}' for value in row)} |"
                for name, row in zip(pool, table, strict=True)
            ),
            "",
        ]
    regrets = ", ".join(f"{name} {value:.4g}" for name, value in zip(pool, cross["regret"], strict=True))
    stable = ", ".join(cross["equilibria_of_the_pool"]) or "none"
    return [
        *lines,
        f"Regret within the pool (all audited agents together): {regrets}. From which no agent gains by another of the "
        f"pool: {stable}.",
    ]


def _agent(audit: AgentAudit) -> dict[str, Any]:
    return {
        "gap": _interval(audit.gap),
        "exact_gap": audit.exact,
        "return_policy": audit.kept,
        "return_random": audit.random,
        "relative_gap": audit.relative,
        "responder": audit.responder,
        "learned": audit.learned,
        "converged": audit.converged,
        "resolution": audit.resolution,
        "noise_share": audit.noise_share,
        "levels": [
            {"steps": level.steps, "gap": level.gap, "growth": level.growth, "growth_error": level.growth_error}
            for level in audit.levels
        ],
    }


def _interval(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "ci_low": interval.low, "ci_high": interval.high}


def _tagged(tag: str, interval: Mapping[str, float]) -> dict[str, float]:
    return {
        tag: interval["estimate"],
        f"{tag}/ci_low": interval["ci_low"],
        f"{tag}/ci_high": interval["ci_high"],
    }


def _shown(interval: Mapping[str, float]) -> str:
    return f"{interval['estimate']:.4g} [{interval['ci_low']:.4g}, {interval['ci_high']:.4g}]"
