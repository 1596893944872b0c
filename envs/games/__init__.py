"""Small games with several equally good answers, whose best policies are known."""

from marl_tr.registry import Entry

__all__ = ["ENVIRONMENTS"]

ENVIRONMENTS = {
    "games/bandit-v0": Entry(
        target="marl_tr.envs.games.bandit:make",
        config="marl_tr.envs.games.config:BanditConfig",
        native=True,
        summary="one choice in the plane; modes of equal worth turn with the context",
    ),
    "games/reach-v0": Entry(
        target="marl_tr.envs.games.reach:make",
        config="marl_tr.envs.games.config:ReachConfig",
        native=True,
        summary="a point mass goes to any of several goals around it",
    ),
    "games/meeting-v0": Entry(
        target="marl_tr.envs.games.meeting:make",
        config="marl_tr.envs.games.config:MeetingConfig",
        native=True,
        summary="two agents must choose the same of several meeting points without talking",
    ),
}
