# SPDX-License-Identifier: Apache-2.0
"""The command ``djpq-nncf``."""

from djpq_nncf.cli import _commands, _run_commands
from djpq_nncf.cli._app import app, main

__all__ = ["_commands", "_run_commands", "app", "main"]
