# SPDX-License-Identifier: Apache-2.0
"""The dependency analysis: which channels of a captured graph live and die together."""

from collections.abc import Callable

from torch.fx import GraphModule, Node

from djpq_nncf.channels import rules  # noqa: F401  (registers the rules)
from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._groups import ROLES, ChannelAnalysis, Role
from djpq_nncf.channels._nodes import is_tensor, where
from djpq_nncf.channels._registry import find_rule
from djpq_nncf.channels._summary import Summary


def analyse_channels(
    model: GraphModule,
    *,
    is_prunable: Callable[[str], bool] = lambda layer: True,
    roles: frozenset[Role] = frozenset(ROLES),
) -> ChannelAnalysis:
    """Group the channels of a captured graph that must be kept or removed together.

    Args:
        model: a captured graph.
        is_prunable: says of a layer, by the name users see, whether its output channels may be removed.
        roles: the kinds of groups that may be removed.

    Returns:
        Groups, labels of every value and parameter, and what must stay with the reason.
    """
    context = RuleContext(model)
    for node in model.graph.nodes:
        _apply_rule(node, context)
    for producer in context.producers:
        if not is_prunable(producer.layer):
            context.channels.freeze(producer.ids, f"'{producer.layer}' is excluded by the configuration")
        elif len(producer.ids) == 1:
            context.channels.freeze(producer.ids, f"'{producer.layer}' has a single channel")
    context.freeze_contested_weights(model.graph)
    return Summary(context, roles).result()


def _apply_rule(node: Node, context: RuleContext) -> None:
    if node.op in ("placeholder", "get_attr"):
        return
    if node.op == "output":
        context.freeze_inputs(node, "is an output of the network")
        return
    rule = find_rule(node)
    context.start()
    if rule is not None:
        rule(node, context)
        context.freeze_unread(node)
    elif not _reads_only_sizes(node, context):
        context.freeze_inputs(node, where(node, "has no channel rule"))


def _reads_only_sizes(node: Node, context: RuleContext) -> bool:
    """Integer arithmetic on sizes, and the size of a dimension without channels."""
    if isinstance(node.meta.get("val"), (int, bool)):
        sources = [source for source in node.all_input_nodes if is_tensor(source)]
        if not sources:
            return True
        dim = node.args[1] if len(node.args) > 1 else None
        return isinstance(dim, int) and context.labels(sources[0])[dim] is None
    return False
