# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``python -m imafs``."""

import sys

from imafs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
