# SPDX-License-Identifier: Apache-2.0
"""Channel groups as a tree and as DOT."""

from collections.abc import Mapping
from dataclasses import replace

import pydot
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from djpq_nncf.capture import capture
from djpq_nncf.channels import ChannelAnalysis, FrozenChannels, Role, analyse_channels
from djpq_nncf.cost import MacOperator, find_embeddings, find_mac_operators
from djpq_nncf.report import groups_to_dot, render_groups
from tests.helpers import NETWORKS, images
from tests.report.test_alike import expand

Found = tuple[ChannelAnalysis, GraphModule]


def find(model: nn.Module, x: Tensor, *roles: Role) -> Found:
    captured = capture(model.eval(), (x,))
    analysis = analyse_channels(captured, **({"roles": frozenset(roles)} if roles else {}))
    return analysis, captured


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.fc1 = nn.Linear(8, 12)
        self.fc2 = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(torch.tanh(self.fc1(x)))


class Language(nn.Module):
    """Token embedding, tied to the last layer; blocks."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


TOKENS = torch.zeros(2, 5, dtype=torch.long)


def edges_of(graph: pydot.Dot) -> set[tuple[str, str, int]]:
    return {
        (edge.get_source().strip('"'), edge.get_destination().strip('"'), int(edge.get("label") or 1))
        for edge in graph.get_edges()
    }


def parse(text: str) -> pydot.Dot:
    graphs = pydot.graph_from_dot_data(text)
    assert graphs is not None
    (graph,) = graphs
    return graph


def expected_edges(
    analysis: ChannelAnalysis, operators: tuple[MacOperator, ...], shown: Mapping[str, str]
) -> set[tuple[str, str, int]]:
    """From the labels of weights, not from the members of groups; ``shown``: name -> node that stands for it."""
    edges = set()
    for operator in operators:
        if operator.weight is None:
            continue
        for dim, ids in enumerate(analysis.parameter_labels[operator.weight]):
            counts: dict[str, dict[int, int]] = {}
            for row in ids.tolist() if ids is not None else ():
                for channel in {channel for channel in row if channel >= 0}:
                    slices = counts.setdefault(analysis.channel_group[channel], {})
                    slices[channel] = slices.get(channel, 0) + 1
            for group, slices in counts.items():
                ends, (number,) = (shown[f"layer {operator.layer}"], shown[f"group {group}"]), set(slices.values())
                edges.add((*(ends if dim == operator.output_dim else ends[::-1]), number))
    return edges


@pytest.mark.parametrize("name", [*NETWORKS, "language"])
def test_dot_says_what_the_labels_say(name: str) -> None:
    analysis, captured = find(Language(), TOKENS) if name == "language" else find(NETWORKS[name](), images())
    operators = (*find_embeddings(captured), *find_mac_operators(captured))
    graph = parse(groups_to_dot(analysis, captured))
    nodes = [node.get_name().strip('"') for node in graph.get_nodes() if node.get_name() != "node"]
    shown = {name: node for node in nodes for name in expand(node)}
    assert sum(len(expand(node)) for node in nodes) == len(shown)
    assert set(shown) == {f"group {group}" for group in analysis.groups} | {
        f"layer {operator.layer}" for operator in operators if operator.weight is not None
    }
    edges, expected = edges_of(graph), expected_edges(analysis, operators, shown)
    if name == "depthwise_separable":  # its filters have no input dimension to be labelled
        expected.add(("group expand.0", "layer depthwise.0", 1))
    assert edges == expected
    assert len(graph.get_edges()) == len(edges)


def test_deep_networks_have_no_larger_graph() -> None:
    graphs = [parse(groups_to_dot(*find(Language(depth), TOKENS))) for depth in (3, 6)]
    assert len({(len(graph.get_nodes()), len(graph.get_edges())) for graph in graphs}) == 1
    (node,) = graphs[1].get_node('"group layers.{0-5}.fc1"')
    assert node.get("label") == '"layers.{0-5}.fc1\\n6 x 12 hidden channels"'


def test_dot_shows_sizes_and_what_stays() -> None:
    graph = parse(groups_to_dot(*find(NETWORKS["depthwise_separable"](), images())))
    labels = {node.get_name().strip('"'): node for node in graph.get_nodes()}
    assert labels["group expand.0"].get("label") == '"expand.0\\n6 hidden channels\\nwith expand.1\\nwith depthwise.1"'
    assert labels["layer depthwise.0"].get("label") == '"depthwise.0\\nconv2d 12x1x3x3"'
    assert labels["layer fc"].get("style") == "dashed"
    assert labels["layer fc"].get("tooltip") == '"5 channels stay: is an output of the network"'
    assert labels["layer project.0"].get("style") is None


def test_dot_with_names_that_need_quotes() -> None:
    analysis, captured = find(NETWORKS["plain"](), images())
    odd = 'a "b" \\ c: d'
    analysis = replace(analysis, frozen=(FrozenChannels("fc1", 2, odd),))
    graph = parse(groups_to_dot(analysis, captured))
    (node,) = graph.get_node('"layer fc1"')
    assert node.get("tooltip") == '"2 channels stay: a \\"b\\" \\\\ c: d"'


def test_tree_of_a_transformer() -> None:
    assert (
        render_groups(*find(Language(), TOKENS), width=200)
        == """\
Channel groups: 74 channels in 13 groups
├── hidden: 36 channels in 3 groups
│   └── layers.{0-2}.fc1: 3 groups of 12 channels
│       ├── made by layers.{0-2}.fc1
│       └── read by layers.{0-2}.fc2
├── residual: 8 channels in 1 group
│   └── embedding: 8 channels
│       ├── made by embedding, layers.{0-2}.out, layers.{0-2}.fc2
│       ├── read by layers.{0-2}.qkv, layers.{0-2}.fc1, head
│       └── along with layers.{0-2}.norm
├── attention_heads: 6 channels in 3 groups
│   └── layers.{0-2}.qkv/attention_heads: 3 groups of 2 channels
│       ├── made by layers.{0-2}.qkv (12 slices for each channel)
│       └── read by layers.{0-2}.out (4 slices for each channel)
├── query_key_width: 12 channels in 3 groups
│   └── layers.{0-2}.qkv/query_key_width: 3 groups of 4 channels
│       └── made by layers.{0-2}.qkv (4 slices for each channel)
├── value_width: 12 channels in 3 groups
│   └── layers.{0-2}.qkv/value_width: 3 groups of 4 channels
│       ├── made by layers.{0-2}.qkv (2 slices for each channel)
│       └── read by layers.{0-2}.out (2 slices for each channel)
└── what stays, and why
    └── aten::embedding at 'embedding' looks up any of its rows
        └── head: 20 channels"""
    )


def test_tree_of_what_stays_in_one_respect() -> None:
    text = render_groups(*find(Language(), TOKENS, "query_key_width"), width=200)
    assert text.splitlines()[5:] == [
        "    ├── 'pruning.dimensions.residual' is off",
        "    │   ├── embedding: 8 channels",
        "    │   ├── layers.{0-2}.out: 8 channels each",
        "    │   └── layers.{0-2}.fc2: 8 channels each",
        "    ├── 'pruning.dimensions.attention_heads' is off",
        "    │   ├── layers.{0-2}.qkv: 8 channels each",
        "    │   └── layers.{0-2}.qkv: 2 attention heads each",
        "    ├── 'pruning.dimensions.hidden' is off",
        "    │   └── layers.{0-2}.fc1: 12 channels each",
        "    └── aten::embedding at 'embedding' looks up any of its rows",
        "        └── head: 20 channels",
    ]


def test_deep_networks_have_no_longer_tree() -> None:
    trees = [render_groups(*find(Language(depth), TOKENS), width=200) for depth in (3, 6)]
    assert len({len(tree.splitlines()) for tree in trees}) == 1
    assert "layers.{0-5}.fc1: 6 groups of 12 channels" in trees[1]


def test_tree_without_groups() -> None:
    text = render_groups(*find(nn.Sequential(nn.Conv2d(3, 4, 1)), images()))
    assert text.splitlines() == [
        "Channel groups: none, nothing is pruned",
        "└── what stays, and why",
        "    └── is an output of the network",
        "        └── 0: 4 channels",
    ]


def test_reasons_in_numbered_blocks_are_told_once() -> None:
    analysis, captured = find(NETWORKS["plain"](), images())
    frozen = tuple(
        FrozenChannels(f"blocks.{i}.conv", 4, f"acme::op at 'blocks.{i}.mix' has {{no}} channel rule") for i in range(3)
    )
    lines = render_groups(replace(analysis, frozen=frozen), captured).splitlines()
    assert lines[-2:] == [
        "    └── acme::op at 'blocks.{0-2}.mix' has {no} channel rule",
        "        └── blocks.{0-2}.conv: 4 channels each",
    ]


def test_long_lines_are_wrapped() -> None:
    text = render_groups(*find(Language(), TOKENS), width=60)
    assert max(map(len, text.splitlines())) <= 60
