"""UAV base stations that fly over ground users and serve them (GA-MATR-style; arXiv 2401.17880)."""

from marl_tr.registry import Entry

__all__ = ["ENVIRONMENTS"]

ENVIRONMENTS = {
    "uav/downlink-v0": Entry(
        target="marl_tr.envs.uav.vector:make",
        config="marl_tr.envs.uav.config:DownlinkConfig",
        native=True,
        summary="UAV base stations choose speed, heading and power to serve ground users",
    ),
}
