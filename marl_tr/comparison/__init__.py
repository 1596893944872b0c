"""``marl-tr compare``: variants of a scenario over tasks and seeds, run, and told apart as far as the runs allow."""

from marl_tr.comparison.compare import compare
from marl_tr.comparison.sweep import Sweep, load_sweep

__all__ = ["Sweep", "compare", "load_sweep"]
