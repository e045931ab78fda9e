"""``python -m dstore``: the same as the ``dstore`` command."""

import sys

from dstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
