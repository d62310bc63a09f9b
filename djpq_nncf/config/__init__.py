# SPDX-License-Identifier: Apache-2.0
"""NNCF-style JSON to validated, typed settings."""

from djpq_nncf.config._nncf_config import DynamicInfo, InputInfo, NNCFConfig
from djpq_nncf.config._problems import Problem, closest, unknown_name
from djpq_nncf.config._schemas import algorithms_with_schema, register_schema, schemas_folder
from djpq_nncf.config._scopes import ScopeSettings

__all__ = [
    "DynamicInfo",
    "InputInfo",
    "NNCFConfig",
    "Problem",
    "ScopeSettings",
    "algorithms_with_schema",
    "closest",
    "register_schema",
    "schemas_folder",
    "unknown_name",
]
