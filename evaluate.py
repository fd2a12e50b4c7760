"""`python evaluate.py --workdir DIR`: see jaxcell/evaluate.py."""

from jaxcell.evaluate import run

if __name__ == "__main__":
    run()
