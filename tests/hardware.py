# SPDX-License-Identifier: Apache-2.0
"""What the CPU that runs the tests can do in INT8."""

import pytest
import torch

_CAPABILITIES = torch.cpu.get_capabilities()
HAS_VNNI = _CAPABILITIES["architecture"] != "x86_64" or any(
    _CAPABILITIES.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8")
)
OVERFLOW_FIX = "disable" if HAS_VNNI else "enable"
"""With this setting a file computes on this CPU what it says: without VNNI sums of 8-bit weights saturate."""
WEIGHT_BITS = 8 if HAS_VNNI else 7
"""The most that a weight may have for the same reason."""

needs_vnni = pytest.mark.skipif(not HAS_VNNI, reason="the INT8 kernel exists for CPUs with VNNI alone")
