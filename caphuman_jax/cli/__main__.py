"""`python -m caphuman_jax.cli` is the command `caphuman`."""

import sys

from caphuman_jax.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
