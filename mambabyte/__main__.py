"""``python -m mambabyte``."""

import sys

from mambabyte.cli.main import main

sys.exit(main())
