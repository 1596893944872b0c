"""``marl-tr scenarios``."""

from __future__ import annotations

__all__ = ["scenarios"]


def scenarios() -> None:
    """List the scenarios that come with the package; 'marl-tr run NAME' runs one."""
    from marl_tr.cli.tables import print_table
    from marl_tr.scenario.document import read_document
    from marl_tr.scenario.loader import shipped

    rows = []
    for name, path in shipped().items():
        data = read_document(path).data
        env = data.get("env", {})
        rows.append((name, str(env.get("id", "")), str(data.get("preset", "")), str(data.get("description", ""))))
    print_table(("scenario", "environment", "preset", "what it shows"), rows)
