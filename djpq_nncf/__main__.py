# SPDX-License-Identifier: Apache-2.0
"""``python -m djpq_nncf`` is the command ``djpq-nncf``."""

from djpq_nncf.cli import main

main()
