# SPDX-License-Identifier: Apache-2.0
"""Small networks with the channel groups that they must have, written by hand."""

from tests.channels.cases._case import Apply, Case, Members, Net, conv, found_groups, layer, norm, reads, rows, weight
from tests.channels.cases.attention import ATTENTION
from tests.channels.cases.blocks import BLOCKS
from tests.channels.cases.tearing import TEARING

CASES: dict[str, Case] = {
    f"{family}: {name}": case
    for family, cases in (("tearing", TEARING), ("attention", ATTENTION), ("blocks", BLOCKS))
    for name, case in cases.items()
}

__all__ = [
    "CASES", "Apply", "Case", "Members", "Net", "conv", "found_groups", "layer", "norm", "reads", "rows", "weight",
]  # fmt: skip
