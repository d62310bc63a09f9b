# SPDX-License-Identifier: Apache-2.0
"""``python -m djpq_nncf.config [FILE]``: write the reference page to FILE, or print it."""

import argparse
import sys
from pathlib import Path

from djpq_nncf.config._reference import reference_page

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The reference page of the configuration, from the schemas.")
    parser.add_argument("file", nargs="?", type=Path, help="where to write it; not given: printed")
    file: Path | None = parser.parse_args().file
    if file is not None:
        file.write_text(reference_page(), encoding="utf-8")
    else:
        sys.stdout.write(reference_page())
