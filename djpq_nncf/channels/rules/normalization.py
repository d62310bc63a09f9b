# SPDX-License-Identifier: Apache-2.0
"""Normalisation that treats every channel on its own."""

from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._registry import Removal, register_channel_rule, register_rewrite

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


@register_channel_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(node: Node, context: RuleContext) -> None:
    """The channels of dimension 1 pass, and the module's vectors run over them."""
    (source,) = node.all_input_nodes
    labels = context.labels(source)
    context.set(node, labels)
    ids = labels[1]
    assert node.graph.owning_module is not None
    module = node.graph.owning_module.get_submodule(str(node.target))
    for name in _PER_CHANNEL:
        if ids is not None and getattr(module, name) is not None:
            context.bind_module_parameter(node, f"{node.target}.{name}", ids)


@register_rewrite(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def shrink_batch_norm(node: Node, removal: Removal) -> None:
    """``num_features`` follows the channels (the vectors themselves are sliced with all other parameters)."""
    assert node.graph.owning_module is not None
    module = node.graph.owning_module.get_submodule(str(node.target))
    assert isinstance(module, _BatchNorm)
    labels = removal.labels(node)
    if len(labels) > 1 and labels[1] is not None:
        module.num_features = len(removal.kept(labels[1]))
