# SPDX-License-Identifier: Apache-2.0
"""Channel groups: which channels of a captured graph must be kept or removed together."""

from djpq_nncf.channels._analysis import analyse_channels
from djpq_nncf.channels._context import RuleContext
from djpq_nncf.channels._groups import (
    CHANNELS_OF,
    FIXED,
    ROLES,
    ChannelAnalysis,
    ChannelGroup,
    FrozenChannels,
    GatePoint,
    Member,
    Role,
    kept_indices,
    kept_mask,
)
from djpq_nncf.channels._labels import Labels
from djpq_nncf.channels._movement import Regather
from djpq_nncf.channels._nodes import shape_of, where
from djpq_nncf.channels._registry import Removal, find_rewrite, register_channel_rule, register_rewrite

__all__ = [
    "CHANNELS_OF",
    "FIXED",
    "ROLES",
    "ChannelAnalysis",
    "ChannelGroup",
    "FrozenChannels",
    "GatePoint",
    "Labels",
    "Member",
    "Regather",
    "Removal",
    "Role",
    "RuleContext",
    "analyse_channels",
    "find_rewrite",
    "kept_indices",
    "kept_mask",
    "register_channel_rule",
    "register_rewrite",
    "shape_of",
    "where",
]
