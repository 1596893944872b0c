"""What is read out of runs: statistics, curves, figures, videos, the audit."""

from marl_tr.analysis.curves import read_scalars
from marl_tr.analysis.statistics import ConfidenceInterval, iqm, stratified_bootstrap_ci

__all__ = ["ConfidenceInterval", "iqm", "read_scalars", "stratified_bootstrap_ci"]
