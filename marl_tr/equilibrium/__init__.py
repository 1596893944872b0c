"""How far joint policies are from an equilibrium, measured: best responses that are learned, and what they gain.

`nash_gap` audits a run; `Auditor` any joint policy in any game; `joint_gap` is the statistics alone.
"""

from marl_tr.equilibrium.audit_run import nash_gap
from marl_tr.equilibrium.auditor import AgentAudit, Auditor, SubjectAudit
from marl_tr.equilibrium.cross_play import CrossPlay, cross_play
from marl_tr.equilibrium.game import FrozenRun, Game, frozen_run
from marl_tr.equilibrium.gaps import JointGap, joint_gap
from marl_tr.equilibrium.plays import PolicySubject, RandomSubject, ReferenceSubject
from marl_tr.equilibrium.settings import AuditSettings

__all__ = [
    "AgentAudit",
    "AuditSettings",
    "Auditor",
    "CrossPlay",
    "FrozenRun",
    "Game",
    "JointGap",
    "PolicySubject",
    "RandomSubject",
    "ReferenceSubject",
    "SubjectAudit",
    "cross_play",
    "frozen_run",
    "joint_gap",
    "nash_gap",
]
