"""``python -m mambabyte``."""

import sys

from mambabyte.cli import main

sys.exit(main())
