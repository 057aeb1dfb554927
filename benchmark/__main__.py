"""`python -m benchmark` is `equipoise`."""

import sys

from benchmark.cli import main

if __name__ == "__main__":  # worker processes import this module as well
    sys.exit(main())
