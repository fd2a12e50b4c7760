"""`python evaluate.py --workdir DIR`: see jaxcell/evaluate.py."""

import sys

from jaxcell.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
