"""The environment of this package, registered with marl-tr by the entry point in ``pyproject.toml``.

The target is a string, so that ``marl-tr envs`` lists it without importing it.
"""

from marl_tr.registry import Entry

__all__ = ["ENVIRONMENTS"]

ENVIRONMENTS = {
    "new_environment/new_environment-v0": Entry(
        target="new_environment.environment:NewEnvironment",
        summary="say here in one line what it is",
        native=False,
    ),
}
