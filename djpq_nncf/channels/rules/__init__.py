# SPDX-License-Identifier: Apache-2.0
"""One module per operator family; importing this package registers them all."""

from djpq_nncf.channels.rules import convolution, elementwise, linear, movement, normalization, reduction

__all__ = ["convolution", "elementwise", "linear", "movement", "normalization", "reduction"]
