"""`jaxcell train | evaluate | predict | data | synthesize | doctor`: the same functions as the scripts.

What a command needs it imports when it is called: jax alone takes seconds, which `jaxcell data` need not wait for.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["main"]


def doctor(argv: list[str]) -> int:
    """Says what jaxcell would compute on, with which versions, memory and cache; tests it; and says what is wrong."""
    argparse.ArgumentParser(prog="jaxcell doctor", description=doctor.__doc__).parse_args(argv)
    from jaxcell import doctor as examination

    for key, value in examination.facts().items():
        print(f"{key:24} {value}", flush=True)
    passed, problems = examination.self_test()
    for key, value in passed.items():
        print(f"{key:24} {value}")
    problems += examination.problems()
    for problem in problems:
        print(f"PROBLEM: {problem}", file=sys.stderr)
    return 1 if problems else 0


def predict(argv: list[str]) -> int:
    """Segments images with a trained run: label TIFF, overlay PNG, COCO JSON and a table of cells."""
    parser = argparse.ArgumentParser(prog="jaxcell predict", description=predict.__doc__, allow_abbrev=False,
                                     epilog="Every key of the run's config can be changed, for example the threshold: "
                                     "--config.decode.score_threshold=0.7, or the channels: --config.data.planes='(0,)'.")
    parser.add_argument("inputs", nargs="+", type=Path, help="image files or folders of images")
    parser.add_argument("--workdir", required=True, type=Path, help="of the training run")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best")
    parser.add_argument("--select", default="", help="of files with more axes than an image: index, channel name or projection, "
                        "such as T=0,Z=max")
    parser.add_argument("--pixel-size", type=float, default=None, help="micrometres per pixel; default: as the file says")
    parser.add_argument("--uncertainty", action="store_true", help="write NAME_uncertainty.tif too: how unsure the network is of "
                        "each pixel (systems that say so: morphoseg)")
    options, rest = parser.parse_known_args(argv)
    if options.pixel_size is not None and not options.pixel_size > 0:
        parser.error(f"--pixel-size={options.pixel_size}: micrometres per pixel, above 0")
    from jaxcell.configuration import load_changed_config
    from jaxcell.data.images import parse_select
    from jaxcell.evaluate import load_predictor
    from jaxcell.inference.predict import predict_files
    from jaxcell.training.compile_cache import use_compile_cache
    from jaxcell.training.log import quiet_libraries

    quiet_libraries()
    use_compile_cache()
    config = load_changed_config(options.workdir, rest)
    predictor = load_predictor(options.workdir, checkpoint=options.checkpoint, config=config)
    return predict_files(options.inputs, options.out, predict=predictor, select=parse_select(options.select),
                         pixel_size=options.pixel_size, uncertainty=options.uncertainty)


def train(argv: list[str]) -> int:
    """Trains a system, or continues a run."""
    from jaxcell.train import run

    sys.argv = ["jaxcell train", *argv]     # absl parses the process's own arguments
    run()
    return 0


def evaluate(argv: list[str]) -> int:
    """Scores a run, or anybody's predictions."""
    from jaxcell.evaluate import run

    sys.argv = ["jaxcell evaluate", *argv]
    run()
    return 0


def synthesize(argv: list[str]) -> int:
    """Makes a data set of composed images."""
    from jaxcell.synthesize import run

    sys.argv = ["jaxcell synthesize", *argv]
    run()
    return 0


def data(argv: list[str]) -> int:
    """Checks, draws and converts data sets."""
    from jaxcell import data_commands

    return data_commands.data(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "data": data,
    "synthesize": synthesize,
    "doctor": doctor,
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command, and of train.py and evaluate.py: what the user can mend comes without a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: jaxcell {{{','.join(COMMANDS)}}} ...   (each with --help)")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"jaxcell: {argv[0]!r} is not a command; known are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        return COMMANDS[argv[0]](argv[1:])
    except BrokenPipeError:         # whoever reads what is printed, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        message = str(error)
    except RuntimeError as error:
        if not str(error).startswith("sample "):
            raise
        message = str(error).splitlines()[0]      # (grain adds a note about its own traceback)
    print(f"jaxcell {argv[0]}: {message}", file=sys.stderr)
    return 2
