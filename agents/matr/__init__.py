"""GA-MATR-style agents: graph-attention multi-agent trust region (reconstruction; see docs)."""

from marl_tr.registry import Entry

__all__ = ["AGENTS", "CRITICS"]

AGENTS = {
    "matr": Entry(
        target="marl_tr.agents.matr.agent:make",
        config="marl_tr.agents.matr.config:MatrConfig",
        summary="GA-MATR-style decentralised recurrent actors with a Beta law",
    ),
}

CRITICS = {
    "graph_recurrent": Entry(
        target="marl_tr.agents.matr.critic:GraphRecurrentEncoder",
        config="marl_tr.agents.matr.config:GraphRecurrentConfig",
        summary="graph attention over agents, then a GRU cell a node; one value an agent (GA-MATR-style)",
    ),
}
