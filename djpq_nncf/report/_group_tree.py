# SPDX-License-Identifier: Apache-2.0
"""Channel groups as a tree: by role what goes together, then what stays and why."""

import io
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text
from rich.tree import Tree
from torch.fx import GraphModule

from djpq_nncf.channels import ROLES, ChannelAnalysis, FrozenChannels
from djpq_nncf.report._alike import Alike, merge_alike
from djpq_nncf.report._group_layers import layers_of_groups, merge_groups, merged_places

_QUOTED_PATH = re.compile(r"'([^']+)'")


def render_groups(analysis: ChannelAnalysis, model: GraphModule, *, width: int = 110) -> str:
    """The tree as plain text; groups and layers that differ only in the number of a block are told once.

    Args:
        analysis: the channel groups.
        model: the captured graph that was analysed.
        width: columns to fill.
    """
    found = f"{_channels(analysis.channel_count)} in {_groups(len(analysis.groups))}"
    tree = Tree(f"Channel groups: {found if analysis.groups else 'none, nothing is pruned'}")
    merged = merge_groups(layers_of_groups(analysis, model))
    for role in ROLES:
        own = [group for group in analysis.groups.values() if group.role == role]
        if own:
            channels = sum(group.size for group in own)
            branch = tree.add(Text(f"{role}: {_channels(channels)} in {_groups(len(own))}"))
            for alike in merged:
                if analysis.groups[alike.names[0]].role == role:
                    _add_group(branch, alike, analysis.groups[alike.names[0]].size)
    if analysis.frozen:
        branch = tree.add("what stays, and why")
        for reason, entries in _by_reason(analysis.frozen).items():
            leaf = branch.add(Text(reason))
            for entry in entries:
                leaf.add(Text(entry))
    console = Console(file=io.StringIO(), width=width, color_system=None, force_jupyter=False)
    console.print(tree)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _add_group(branch: Tree, alike: Alike, size: int) -> None:
    several = f"{_groups(alike.count)} of " if alike.count > 1 else ""
    node = branch.add(Text(f"{alike.name}: {several}{_channels(size)}"))
    places = merged_places(alike)
    for relation in dict.fromkeys(relation for relation, _, _ in places):
        own = dict.fromkeys((slices, layer) for kind, slices, layer in places if kind == relation)
        layers = merge_alike(Alike.one(slices, layer) for slices, layer in own)
        node.add(Text(f"{relation} " + ", ".join(f"{layer.name}{_times(layer.kind)}" for layer in layers)))


def _times(slices: Hashable) -> str:
    return "" if slices == 1 else f" ({slices} slices for each channel)"


def _by_reason(frozen: Sequence[FrozenChannels]) -> Mapping[str, list[str]]:
    """Reason -> what stays because of it."""
    reasons: dict[str, list[str]] = {}
    for alike in merge_alike(_reasons_as_alike(frozen)):
        assert isinstance(alike.kind, tuple)
        what, pattern = alike.kind
        _, *paths = alike.paths
        each = " each" if alike.count > 1 else ""
        reasons.setdefault(pattern.format(*paths), []).append(f"{alike.name}: {what}{each}")
    return reasons


def _reasons_as_alike(frozen: Iterable[FrozenChannels]) -> Iterator[Alike]:
    """The module path in a reason may go along with the layer's."""
    for entry in frozen:
        paths = _QUOTED_PATH.findall(entry.reason)
        braces = entry.reason.replace("{", "{{").replace("}", "}}")
        yield Alike.one((entry.what, _QUOTED_PATH.sub("'{}'", braces)), entry.layer, *paths)


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count:,} channels"


def _groups(count: int) -> str:
    return "1 group" if count == 1 else f"{count:,} groups"
