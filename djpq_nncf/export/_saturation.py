# SPDX-License-Identifier: Apache-2.0
"""Whether INT8 sums saturate on this CPU: then a file computes something else here than it says."""

from collections.abc import Iterable

import torch

from djpq_nncf.cost._recount import FileLayer

_SAFE_BITS = 7
"""Two products of such weights with 8-bit activations fit into 16 bits."""
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


def saturating_layers(layers: Iterable[FileLayer]) -> tuple[str, ...]:
    """Names of the INT8 layers whose sums may saturate on this CPU: x86 without VNNI, and weights of 8 bits."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("architecture") != "x86_64" or any(capabilities.get(name, False) for name in _VNNI):
        return ()
    return tuple(layer.name for layer in layers if _SAFE_BITS < layer.weight_bits <= 8 and layer.activation_bits <= 8)
