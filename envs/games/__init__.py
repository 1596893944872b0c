"""Games whose best policies, or equilibria, are known."""

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
    "games/matrix-v0": Entry(
        target="marl_tr.envs.games.matrix:make",
        config="marl_tr.envs.games.config:MatrixConfig",
        native=True,
        summary="any game in normal form, by name or payoffs, once or repeated, with exact gaps",
    ),
    "games/differential-v0": Entry(
        target="marl_tr.envs.games.differential:make",
        config="marl_tr.envs.games.config:DifferentialConfig",
        native=True,
        summary="two players choose a number each: product, saddle, two hills",
    ),
    "games/uav_placement-v0": Entry(
        target="marl_tr.envs.games.placement:make",
        config="marl_tr.envs.games.config:PlacementConfig",
        native=True,
        summary="UAVs choose place and power, once; with exact equilibria and gaps",
    ),
    "games/kuhn-v0": Entry(
        target="marl_tr.envs.games.kuhn:make",
        config="marl_tr.envs.games.config:PokerConfig",
        native=True,
        summary="Kuhn poker, in turns, with exact gaps",
    ),
    "games/leduc-v0": Entry(
        target="marl_tr.envs.games.leduc:make",
        config="marl_tr.envs.games.config:PokerConfig",
        native=True,
        summary="Leduc poker, in turns, with exact gaps",
    ),
    "games/openspiel-v0": Entry(
        target="marl_tr.envs.games.spiel:env",
        config="marl_tr.envs.games.config:SpielConfig",
        summary="any turn-based game of OpenSpiel (extra 'spiel')",
    ),
}
