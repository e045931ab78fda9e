"""``python -m dstore`` is the command ``dstore``."""

import sys

from dstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
