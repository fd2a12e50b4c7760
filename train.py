"""`python train.py --config configs/<system>.py[:variant] --workdir DIR`: the experiment itself is jaxcell/train.py."""

import sys

from jaxcell.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
