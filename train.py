"""`python train.py --config configs/<system>.py[:variant] --workdir DIR`: see jaxcell/train.py, the experiment itself."""

from jaxcell.train import run

if __name__ == "__main__":
    run()
