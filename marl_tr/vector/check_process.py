"""Whether a second Python process, with another hash seed, gets the same episode.

Run as ``python -m marl_tr.vector.check_process``: reads a request as JSON from standard input and prints
digests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from marl_tr.registry import BadTarget, Entry, UnknownName, find
from marl_tr.vector.check_vector import vector_digests
from marl_tr.vector.make import make_vector_env
from marl_tr.vector.report import Outcome

__all__ = ["two_processes"]

SEED = 11
COPIES = 2
_UNREACHABLE = 4
"""Exit code: the environment cannot be found from another process."""


def two_processes(
    id: str, entry: Entry, config: Mapping[str, Any] | BaseModel, *, cycles: int, rebuild: bool = False
) -> Outcome:
    """Compare this process's digests with a child's.

    Args:
        id: The environment's name.
        entry: Its registry entry.
        config: Its settings.
        cycles: Steps to compare.
        rebuild: Make every environment anew for each episode.
    """
    settings = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    try:
        request = json.dumps(
            {
                "id": id,
                "target": _target(entry),
                "native": entry.native,
                "config": settings,
                "steps": cycles,
                "rebuild": rebuild,
                "path": sys.path,
            }
        )
    except TypeError:
        return _not_reached("its settings cannot be written as JSON")
    # Another hash seed: an episode that follows the order of a set differs then.
    environ = {
        **os.environ,
        "PYTHONHASHSEED": "12345" if os.environ.get("PYTHONHASHSEED") != "12345" else "54321",
    }
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()",
    ]
    child = subprocess.run(
        command, input=request, capture_output=True, text=True, env=environ, timeout=600, check=False
    )
    if child.returncode == _UNREACHABLE:
        return _not_reached("it was registered in this process only")
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return Outcome(False, f"The second process failed: {last}", "make the factory importable and free of globals")
    theirs = json.loads(child.stdout.splitlines()[-1])
    env = make_vector_env(id, num_envs=COPIES, config=config, rebuild=rebuild, entry=entry)
    mine = vector_digests(env, seed=SEED, steps=cycles)
    env.close()
    place = next((step for step, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), None)
    if place is None:
        return Outcome(True, f"{cycles} steps.")
    return Outcome(
        False,
        f"A second Python process with the same seed and actions answers otherwise at step {place}.",
        "nothing may depend on hash(), the order of a set, id(), the time or the process: sort sets before "
        "looping "
        "over them (sorted(...)), and seed from reset(seed=...) alone",
    )


def _not_reached(why: str) -> Outcome:
    return Outcome(
        True,
        f"Not compared with a second process: {why}.",
        "name the environment 'package.module:factory'",
        warning=True,
    )


def _target(entry: Entry) -> str | None:
    """``"module:factory"`` of the entry's factory, or None where it has no importable name."""
    if isinstance(entry.target, str):
        return entry.target
    module, name = getattr(entry.target, "__module__", None), getattr(entry.target, "__qualname__", "<none>")
    return None if module in (None, "__main__") or "<" in name else f"{module}:{name}"


def main() -> None:
    """Answer one request from standard input on standard output."""
    request = json.loads(sys.stdin.read())
    try:
        entry = _find(request)
    except (UnknownName, BadTarget):
        sys.exit(_UNREACHABLE)
    made = {name: request[name] for name in ("config", "rebuild")}
    env = make_vector_env(request["id"], num_envs=COPIES, entry=entry, **made)
    print(json.dumps(vector_digests(env, seed=SEED, steps=request["steps"])))


def _find(request: Mapping[str, Any]) -> Entry:
    try:
        return find("envs", request["id"])
    except (UnknownName, BadTarget):
        if request["target"] is None:
            raise
        entry = Entry(target=request["target"], native=request["native"])
        entry.load()  # imported here, so that a name that leads nowhere is noticed here
        return entry


if __name__ == "__main__":
    main()
