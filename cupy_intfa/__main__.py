"""``python -m cupy_intfa``."""

import sys

from cupy_intfa.cli import main

if __name__ == "__main__":
    sys.exit(main())
