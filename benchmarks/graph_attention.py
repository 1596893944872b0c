"""Dense graph attention against torch-geometric's GATv2Conv, forward and backward, in one process.

    python benchmarks/graph_attention.py [--graphs 256 --nodes 4 --width 64 --repeats 15]

Four layers on the same complete graphs, in turns, so that load from elsewhere meets all alike:
    GATv2Conv        torch-geometric alone, its edge list made beforehand: the most favourable case for it
    sparse layer     `SparseGraphAttention`: the same from a mask, with the output layer and the weights as a
    map dense gatv2      `DenseGraphAttention`, the same function
    dense dot        `DenseGraphAttention`, scaled dot products
A repeat is the median of `--calls` calls; printed are the median repeat and the range of repeats. Ratios are
formed within a repeat.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from marl_tr.nn.graph import DenseGraphAttention, SparseGraphAttention, copy_gatv2conv

RESULTS = Path(__file__).parent / "results" / "graph_attention.json"
HEADS, EDGE_FEATURES = 4, 5
Layer = Callable[[Tensor], Tensor]


def layers(graphs: int, nodes: int, width: int, *, edge_features: int) -> tuple[Tensor, dict[str, Layer]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(graphs, nodes, width, generator=generator)
    adjacency = torch.ones(graphs, nodes, nodes, dtype=torch.bool)
    edges = torch.randn(graphs, nodes, nodes, edge_features, generator=generator) if edge_features else None
    sparse = SparseGraphAttention(width, width, HEADS, edge_features, generator=generator)
    gatv2 = DenseGraphAttention(width, width, HEADS, edge_features, "gatv2", generator=generator)
    dot = DenseGraphAttention(width, width, HEADS, edge_features, "dot", generator=generator)
    copy_gatv2conv(sparse.convolution, gatv2)
    gatv2.output.load_state_dict(sparse.output.state_dict())
    graph, receiver, sender = adjacency.nonzero(as_tuple=True)
    edge_index = torch.stack([graph * nodes + sender, graph * nodes + receiver])
    flat = None if edges is None else edges.reshape(-1, edge_features)
    difference = (gatv2(x, adjacency, edges)[0] - sparse(x, adjacency, edges)[0]).detach().abs().max()
    assert float(difference) < 1e-5, f"the two layers differ by {float(difference):.2g}"
    return x, {
        "GATv2Conv": lambda x: sparse.convolution(x.reshape(-1, width), edge_index, flat),
        "sparse layer": lambda x: sparse(x, adjacency, edges)[0],
        "dense gatv2": lambda x: gatv2(x, adjacency, edges)[0],
        "dense dot": lambda x: dot(x, adjacency, edges)[0],
    }


def milliseconds(layer: Layer, x: Tensor, calls: int) -> float:
    times = []
    for _ in range(calls):
        leaf = x.clone().requires_grad_()
        start = time.perf_counter()
        layer(leaf).sum().backward()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def measure(options: argparse.Namespace, edge_features: int) -> dict[str, object]:
    x, candidates = layers(options.graphs, options.nodes, options.width, edge_features=edge_features)
    for layer in candidates.values():
        milliseconds(layer, x, 3)
    repeats: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(options.repeats):
        for name, layer in candidates.items():
            repeats[name].append(milliseconds(layer, x, options.calls))
    print(f"\n{options.graphs} graphs x {options.nodes} nodes, width {options.width}, {edge_features} edge features")
    print(f"{'':14s}{'ms':>8s}{'range':>16s}{'GATv2Conv /':>14s}{'sparse layer /':>16s}")
    rows: dict[str, object] = {}
    for name, times in repeats.items():
        against = {
            peer: [theirs / ours for theirs, ours in zip(repeats[peer], times, strict=True)]
            for peer in ("GATv2Conv", "sparse layer")
        }
        ratios = {peer: statistics.median(values) for peer, values in against.items()}
        spread = f"{min(times):.2f}-{max(times):.2f}"
        print(
            f"{name:14s}{statistics.median(times):8.2f}{spread:>16s}"
            f"{ratios['GATv2Conv']:13.2f}x{ratios['sparse layer']:15.2f}x"
        )
        rows[name] = {
            "ms": times,
            **{
                f"speed over {peer}": {"median": ratios[peer], "range": [min(v), max(v)]} for peer, v in against.items()
            },
        }
    return {"edge_features": edge_features, "layers": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=256)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import torch_geometric

    report = {
        "graphs": options.graphs,
        "nodes": options.nodes,
        "width": options.width,
        "heads": HEADS,
        "calls": options.calls,
        "threads": 1,
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        "machine": platform.machine(),
        "cases": [measure(options, edge_features) for edge_features in (0, EDGE_FEATURES)],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten: {options.out}")


if __name__ == "__main__":
    main()
