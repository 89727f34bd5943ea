"""``python -m cupy_intfa``."""

import sys

from cupy_intfa.cli import main

sys.exit(main())
