# SPDX-License-Identifier: Apache-2.0
"""State of inserted modules that a checkpoint of the original model does not have."""

from collections.abc import Mapping
from typing import Any

from torch import nn


class OptionalState(nn.Module):
    """Loads from a state_dict that has none of this module's entries, and then stays as it is.

    So a checkpoint of the original model loads into the compressed one with ``strict=True``. One that has
    some of the entries but not all is damaged, and reported as usual.
    """

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args)
            self._after_load(prefix)

    def _after_load(self, prefix: str) -> None:
        """Called once parameters and buffers were loaded; ``prefix`` is this module's path and a dot."""
