"""What the scenarios of the UAV suite reach, beside the reference policies on the same held-out episodes.

    python benchmarks/uav_scenarios.py --seeds 1 2 3 --jobs 2

Runs, one thread each, are kept in ``benchmarks/results/uav_scenarios.json``; those that it holds are skipped. Three
seeds are a look: no ranking follows from them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from third_party import Book, table, trained

RESULTS = Path(__file__).resolve().parent / "results" / "uav_scenarios.json"
SCENARIOS = ("uav_paper", "uav_relief", "uav_battery", "uav_thousand")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/uav_scenarios"))
    arguments = parser.parse_args()
    book = Book(RESULTS)
    names = [f"{scenario} seed={seed}" for seed in arguments.seeds for scenario in arguments.scenarios]
    book.fill("runs", names, lambda name: trained(name, arguments.runs_dir), jobs=arguments.jobs)
    print(table(book.kept["runs"]))


if __name__ == "__main__":
    main()
