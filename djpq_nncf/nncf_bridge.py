# SPDX-License-Identifier: Apache-2.0
"""The only file that touches NNCF: where it would put quantizers, for OpenVINO to run in INT8, and its own INT8."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from djpq_nncf.capture import layer_name
from djpq_nncf.errors import PlacementError


@dataclass(frozen=True)
class QuantizationPoint:
    """Where an activation is quantized.

    Attributes:
        node: name of the node in question.
        input_port: the input of ``node`` that is quantized, or None for the output of ``node``.
        serves: names of the operators that read the quantized value through it.
        scale_group: points with the same number share one scale.
    """

    node: str
    input_port: int | None
    serves: tuple[str, ...]
    scale_group: int


def find_quantization_points(
    model: GraphModule, *, ignored_nodes: list[str], target_device: str = "ANY", transformer: bool = False
) -> tuple[QuantizationPoint, ...]:
    """Activation quantization points as NNCF's post-training quantization would choose them.

    Args:
        model: a captured graph in functional form (no call_module nodes); it is changed.
        ignored_nodes: names of nodes that are not to be quantized.
        target_device: one of NNCF's target devices.
        transformer: use NNCF's scheme for transformers, which leaves the residual stream and normalization in float.

    Raises:
        PlacementError: NNCF finds no placement for this graph; it names the operator where that is known.
    """
    with quiet_imports():
        import nncf
        from nncf.experimental.torch.fx.nncf_graph_builder import GraphConverter
        from nncf.quantization.algorithms.min_max.algorithm import MinMaxQuantization

    algorithm = MinMaxQuantization(
        target_device=nncf.TargetDevice(target_device),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    algorithm._set_backend_entity(model)
    if ignored_nodes:
        algorithm.set_ignored_scope(nncf.IgnoredScope(names=ignored_nodes))
    _inline_sizes(model)
    try:
        graph = GraphConverter.create_nncf_graph(model)
        _fill_in_shapes(graph, model)
        setup = algorithm.find_quantization_setup(model, graph)
    except Exception as error:  # NNCF lets errors of every kind escape on graphs it does not expect
        node = _node_in_question(model, error)
        culprit = "" if node is None else f" at '{layer_name(node)}' ({node.target})"
        raise PlacementError(
            f"NNCF finds no quantizer placement for this network{culprit}: {type(error).__name__}: {error}. "
            "Write that operator otherwise, or train without quantizers: "
            '"quantization": {"enabled": false}.'
        ) from error

    group_of = {
        member: number for number, members in enumerate(setup.unified_scale_groups.values()) for member in members
    }
    alone = len(setup.unified_scale_groups)
    points = []
    for identifier, point in sorted(setup.quantization_points.items()):
        if point.is_weight_quantization_point():
            continue
        place = point.insertion_point
        points.append(
            QuantizationPoint(
                node=place.target_node_name,
                input_port=getattr(place, "input_port_id", None),
                serves=tuple(sorted(point.directly_quantized_operator_node_names)),
                scale_group=group_of.get(identifier, alone + identifier),
            )
        )
    return tuple(points)


def quantize_post_training(
    model: Any,
    batches: Sequence[Mapping[str, Any]],
    *,
    target_device: str = "ANY",
    transformer: bool = False,
    activations_per_channel: bool = True,
) -> Any:
    """NNCF's post-training quantization, as its documentation recommends it.

    Args:
        model: an OpenVINO or ONNX model.
        batches: calibration samples, arrays by input name.
        target_device: one of NNCF's target devices.
        transformer: use NNCF's scheme for transformers.
        activations_per_channel: let NNCF give the input of a depthwise convolution a scale for each channel.
    """
    with quiet_imports():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
    per_channel = None if activations_per_channel else False
    advanced = AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=per_channel)
    )
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return nncf.quantize(
                model,
                nncf.Dataset(batches),
                subset_size=len(batches),
                target_device=nncf.TargetDevice(target_device),
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                advanced_parameters=advanced,
            )
    finally:
        logger.setLevel(level)


def _fill_in_shapes(graph: Any, model: GraphModule) -> None:
    """Shapes of the outputs of an operator with several: NNCF knows them of some operators, and needs them of all."""
    values = {node.name: node.meta.get("val") for node in model.graph.nodes}
    for _, reader, attributes in graph._nx_graph.edges(data=True):
        if attributes[graph.ACTIVATION_SHAPE_EDGE_ATTR] is None:
            value = values[graph.get_node_by_key(reader).node_name]
            attributes[graph.ACTIVATION_SHAPE_EDGE_ATTR] = tuple(getattr(value, "shape", ()))


def _node_in_question(model: GraphModule, error: Exception) -> Node | None:
    """The node that NNCF was looking at when it failed: its functions hold it in a variable."""
    nodes = {node.name: node for node in model.graph.nodes}
    found, traceback = None, error.__traceback__
    while traceback is not None:
        variables = traceback.tb_frame.f_locals
        for name in ("source_node", "node", "nncf_node"):
            value = variables.get(name)
            found = nodes.get(getattr(value, "name", None) or getattr(value, "node_name", "")) or found
        traceback = traceback.tb_next
    return found


def _inline_sizes(model: GraphModule) -> None:
    """Write sizes computed in the graph into the calls that use them: NNCF knows them as symbols only."""
    sizes = {node for node in model.graph.nodes if isinstance(node.meta.get("val"), int)}
    for node in list(model.graph.nodes):
        node.args = map_arg(node.args, lambda n: n.meta["val"] if n in sizes else n)
        node.kwargs = map_arg(node.kwargs, lambda n: n.meta["val"] if n in sizes else n)
    for node in reversed(model.graph.nodes):
        if node in sizes:
            model.graph.erase_node(node)
    model.recompile()


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Importing NNCF's FX backend imports torchao, which complains about GPU libraries on CPU machines."""
    loggers = [logging.getLogger(name) for name in ("torch.utils._pytree", "torch.utils.cpp_extension", "torchao")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = ["QuantizationPoint", "find_quantization_points", "quantize_post_training", "quiet_imports"]
