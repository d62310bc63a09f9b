# SPDX-License-Identifier: Apache-2.0
"""Linear layers, on the last dimension of a tensor of any rank."""

import torch
from torch.fx import Node

from djpq_nncf.channels._context import RuleContext, shape_of, where
from djpq_nncf.channels._registry import register_channel_rule
from djpq_nncf.channels.rules._arguments import argument

aten = torch.ops.aten


@register_channel_rule(aten.linear.default)
def linear(node: Node, context: RuleContext) -> None:
    """Input features are mixed; output features are new channels."""
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    if weight.op != "get_attr":
        context.freeze_inputs(node, where(node, "has a computed weight"))
        return
    *leading, incoming = context.labels(source)
    if incoming is not None:
        context.bind_parameter(node, weight, 1, incoming)
        context.consume(node, weight, 1)
    outgoing = context.produce(node, shape_of(weight)[0])
    context.bind_parameter(node, weight, 0, outgoing)
    if bias is not None:
        context.bind_parameter(node, bias, 0, outgoing)
    context.set(node, [*leading, outgoing])
