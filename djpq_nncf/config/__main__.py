# SPDX-License-Identifier: Apache-2.0
"""``python -m djpq_nncf.config [FILE]``: write the reference page to FILE, or print it."""

import sys
from pathlib import Path

from djpq_nncf.config._reference import reference_page

if __name__ == "__main__":
    page = reference_page()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)
