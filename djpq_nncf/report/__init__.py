# SPDX-License-Identifier: Apache-2.0
"""How results are shown."""

from djpq_nncf.report._group_dot import groups_to_dot
from djpq_nncf.report._group_tree import render_groups
from djpq_nncf.report._table import render_table

__all__ = ["groups_to_dot", "render_groups", "render_table"]
