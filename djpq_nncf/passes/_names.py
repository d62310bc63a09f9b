# SPDX-License-Identifier: Apache-2.0
"""Where inserted modules live in the module tree."""

CONTAINER = "compression"
"""Top-level submodule that holds everything a pass inserts, so that original names stay as they are."""


def module_name(name: str) -> str:
    """A layer or group name as the name of one submodule (which may hold no dots)."""
    return name.replace(".", "_").replace("#", "_")
