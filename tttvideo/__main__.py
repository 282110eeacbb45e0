"""`python -m tttvideo` is the command `tttvideo`."""

import sys

from tttvideo.cli import main

if __name__ == "__main__":
    sys.exit(main())
