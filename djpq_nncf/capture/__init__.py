# SPDX-License-Identifier: Apache-2.0
"""nn.Module -> trainable ``torch.fx.GraphModule`` with the original parameter names."""

from djpq_nncf.capture._binding import argument_names, bind_inputs
from djpq_nncf.capture._capture import capture, is_captured
from djpq_nncf.capture._einsum import einsum_terms
from djpq_nncf.capture._functional import to_functional
from djpq_nncf.capture._inputs import DynamicDims, InputSpec
from djpq_nncf.capture._names import layer_name
from djpq_nncf.capture._shapes import free_dims, propagate_shapes

__all__ = [
    "DynamicDims",
    "InputSpec",
    "argument_names",
    "bind_inputs",
    "capture",
    "einsum_terms",
    "free_dims",
    "is_captured",
    "layer_name",
    "propagate_shapes",
    "to_functional",
]
