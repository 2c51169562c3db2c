"""``python -m plasticity``."""

import sys

from .cli import main

sys.exit(main())
