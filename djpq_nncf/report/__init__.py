# SPDX-License-Identifier: Apache-2.0
"""How results are shown."""

from djpq_nncf.report._course import History
from djpq_nncf.report._group_dot import groups_to_dot
from djpq_nncf.report._group_layers import GroupLayers, layers_of_groups
from djpq_nncf.report._group_tree import render_groups
from djpq_nncf.report._html import write_report
from djpq_nncf.report._run_report import FileCheck, FrozenFigures, GroupFigures, LayerFigures, RunReport
from djpq_nncf.report._table import render_table

__all__ = [
    "FileCheck",
    "FrozenFigures",
    "GroupFigures",
    "GroupLayers",
    "History",
    "LayerFigures",
    "RunReport",
    "groups_to_dot",
    "layers_of_groups",
    "render_groups",
    "render_table",
    "write_report",
]
