# SPDX-License-Identifier: Apache-2.0
"""Layer-wise reconstruction: each layer learns to compute what it computed before it was compressed."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from djpq_nncf.algorithms._data import Inputs, iterate_inputs
from djpq_nncf.algorithms._progress import track
from djpq_nncf.cost import MacOperator
from djpq_nncf.cost._dataflow import analyse_dataflow

_BATCH = 32
_RATE = 1e-3


def reconstruct_layers(
    model: GraphModule,
    reference: GraphModule,
    operators: Sequence[MacOperator],
    data: Iterable[Any],
    *,
    samples: int,
    steps: int,
    seed: int,
) -> None:
    """Tune weight, bias, weight range and BatchNorm's parameters of one layer after the other.

    A layer sees what the compressed layers before it make of the data, and learns what ``reference`` computes there
    (as Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020; but the weights themselves
    move, rounded straight-through, which also makes up for channels that are gone). A layer that gets no better stays
    as it was. Of layers that share a weight the first learns.

    Args:
        model: frozen graph with gates and quantizers, changed in place.
        reference: the same graph before its compression; nodes have the same names.
        operators: those with a weight are layers.
        data: batches of samples.
        samples: how much of the data to use.
        steps: of Adam, for each layer.
        seed: of the order of the samples.

    Raises:
        DataError: the data is empty, or holds NaN or infinity.
    """
    inputs = [batch for batch, _ in iterate_inputs(model, data, samples)]
    generator = torch.Generator().manual_seed(seed)
    nodes = {node.name: node for node in model.graph.nodes}
    computed = analyse_dataflow(model).computed
    training = model.training
    model.eval()
    tuned: set[Tensor] = set()
    layers = [nodes[entry.node] for entry in operators if entry.weight is not None]
    try:
        with track("Reconstructing layers", len(layers)) as advance:
            for node in layers:
                layer = _Layer.of(model, node, computed)
                parameters = [p for p in layer.parameters() if p not in tuned]
                if parameters:
                    _reconstruct(layer, reference, parameters, inputs, steps, generator)
                    tuned.update(parameters)
                advance(1)
    finally:
        model.train(training)


@dataclass(frozen=True)
class _Layer:
    """A convolution or linear layer, with the BatchNorm that reads nothing but it.

    Attributes:
        end: the last node of it.
        sources: nodes with values that depend on the input of the network.
    """

    model: GraphModule
    end: Node
    sources: tuple[Node, ...]

    @classmethod
    def of(cls, model: GraphModule, node: Node, computed: frozenset[Node]) -> "_Layer":
        sources = tuple(source for source in node.all_input_nodes if source in computed)
        users = list(node.users)
        follower = (
            model.get_submodule(str(users[0].target)) if len(users) == 1 and users[0].op == "call_module" else None
        )
        return cls(model, users[0] if isinstance(follower, _BatchNorm) else node, sources)

    def parameters(self) -> list[nn.Parameter]:
        """What can be tuned, each once."""
        found: dict[nn.Parameter, None] = {}
        pending = [self.end]
        while pending:
            node = pending.pop()
            if node in self.sources:
                continue
            pending += node.all_input_nodes
            if node.op == "get_attr":
                value = operator.attrgetter(str(node.target))(self.model)
                found |= {value: None} if isinstance(value, nn.Parameter) else {}
            elif node.op == "call_module":
                found |= dict.fromkeys(self.model.get_submodule(str(node.target)).parameters())
        return [parameter for parameter in found if parameter.requires_grad and parameter.is_floating_point()]

    def __call__(self, values: Sequence[Any]) -> Tensor:
        known = dict(zip(self.sources, values, strict=True))

        def evaluate(node: Node) -> Any:
            if node in known:
                return known[node]
            if node.op == "get_attr":
                return operator.attrgetter(str(node.target))(self.model)
            function = self.model.get_submodule(str(node.target)) if node.op == "call_module" else node.target
            args, kwargs = map_arg(node.args, evaluate), map_arg(node.kwargs, evaluate)
            return function(*args, **kwargs)  # type: ignore[operator]

        result: Tensor = evaluate(self.end)
        return result


def _reconstruct(
    layer: _Layer,
    reference: GraphModule,
    parameters: list[nn.Parameter],
    inputs: Sequence[Inputs],
    steps: int,
    generator: torch.Generator,
) -> None:
    (end,) = (node for node in reference.graph.nodes if node.name == layer.end.name)
    before_layer, as_it_was = _up_to(layer.model, layer.sources), _up_to(reference, [end])
    with torch.no_grad():
        leaves = [tree_leaves(batch) for batch in inputs]
        batches = [(before_layer(*batch), as_it_was(*batch)[0]) for batch in leaves]

    def error() -> float:
        with torch.no_grad():
            return sum(float(F.mse_loss(layer(values), wanted)) * len(wanted) for values, wanted in batches)

    before, earlier = error(), [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(steps):
        values, wanted = batches[int(torch.randint(len(batches), (1,), generator=generator))]
        values, wanted = _some((values, wanted), len(wanted), generator)
        optimizer.zero_grad()
        F.mse_loss(layer(values), wanted).backward()
        optimizer.step()
        schedule.step()
    for parameter in parameters:
        parameter.grad = None
    if not error() < before:
        with torch.no_grad():
            for parameter, value in zip(parameters, earlier, strict=True):
                parameter.copy_(value)


def _some(values: Any, count: int, generator: torch.Generator) -> Any:
    """A few samples of a batch; tensors that are not batched stay as they are."""
    chosen = torch.randperm(count, generator=generator)[:_BATCH]
    return tree_map(
        lambda x: x[chosen.to(x.device)] if isinstance(x, Tensor) and x.dim() and len(x) == count else x, values
    )


def _up_to(model: GraphModule, nodes: Sequence[Node]) -> GraphModule:
    """The part of a graph that computes these values, on the model's own modules; takes the leaves of the inputs."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in model.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if all(wanted in copies for wanted in nodes):
            break
    graph.output(tuple(copies[node] for node in nodes))
    return GraphModule(model, graph)
