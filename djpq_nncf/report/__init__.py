# SPDX-License-Identifier: Apache-2.0
"""How results are shown."""

from djpq_nncf.report._table import render_table

__all__ = ["render_table"]
