"""Saving a run's config beside its checkpoints, and refusing to continue a run under another one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

__all__ = ["common_config", "load_changed_config", "load_config", "read_command_line", "readable_flag_errors", "save_config"]

# Keys that may change when a run continues: they say when it looks and stops, not what it computes.
FREE = ("train.stop_step", "train.log_every", "train.eval_", "train.checkpoint_every", "train.keep", "train.images",
        "train.features", "train.profile", "data.root", "data.workers", "data.prefetch", "data.cache_gb", "data.disk_cache",
        "inference.", "decode.", "layout")

# Keys that came after the first version, and what every run did before it had them.
ADDED: Mapping[str, Mapping[str, Any]] = {
    "data": {"disk_cache": "", "disk_cache_gb": 20.0, "unreadable": "refuse", "device_augment": "none"},
    "loss": {"teacher": {"foreground_score": 0.9, "background_score": 0.1, "uncertainty_margin": 0.1, "student_uncertainty": 0.5,
                         "certain": 0.0}},
    "train": {"average_decay": 0.0, "max_skipped": 10, "profile": ()},
    "semi": {"scheme": "none", "unlabelled": {}, "batch_size": 0, "augment": "flips", "start_step": 0, "weight": 1.0}}

# (part, key) -> keys that came later to the configs that have this one there, and what such runs did before.
ADDED_BESIDE: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("inference", "overlap"): {"edges": "centred", "merge": "outputs"},
    ("inference", "step"): {"blend": "constant", "scales": (1.0,), "large": 25_000_000, "partners": ()},
    ("inference", "noise"): {"statistics": "running"},
    ("model", "judge_width"): {"upsampling": "transposed"},
    ("decode", "duplicate_iou"): {"duplicate_share": 1.0},
    ("compose", "zoom"): {"donors": 8, "halo": 0}}

# The same for sources of kind "folder" to learn from.
ADDED_TO_FOLDERS: Mapping[str, Any] = {"coding": "ids", "select": ""}


def common_config(system: str) -> ml_collections.ConfigDict:
    """The keys that mean the same in every system, with the values that most of them start from.

    A config file adds what is its own: sources, network, targets, loss, decoding, inference, schedule and lengths.

    Args:
      system: an entry of `jaxcell.systems.SYSTEMS`.
    """
    c = ml_collections.ConfigDict()
    c.system = system
    c.seed = 0                          # of parameters, order, crops and augmentation
    c.pretrained = ""                   # a published checkpoint or earlier runs to start from, see docs/training.md

    c.data = ml_collections.ConfigDict()
    c.data.root = "data"                # the folder that holds the sources
    c.data.planes = ()                  # which channels of the files to take, such as (0,); (): all
    c.data.device_augment = "none"      # intensity changes in the train step: a policy of jaxcell/training/device_augment.py
    c.data.reject_empty = 0.0           # probability with which a crop without cells is drawn again
    c.data.epoch_fraction = 1.0         # share of the images that an epoch visits, drawn anew for each
    c.data.workers = 0                  # processes that prepare batches, 0: this one; for how many see benchmarks/input.py
    c.data.prefetch = 4                 # batches prepared in advance by each of them
    c.data.cache_gb = 4.0               # memory for decoded images; each worker may fill as much again
    c.data.disk_cache = ""              # folder for decoded images, where they exceed the memory; "": none
    c.data.disk_cache_gb = 20.0
    c.data.unreadable = "refuse"        # "skip": images that cannot be read are left out and counted

    c.model = ml_collections.ConfigDict()
    c.model.dtype = "auto"              # of the arithmetic: bfloat16 on GPUs and TPUs, float32 on CPUs; or one of them

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.clip_norm = 0.0         # of the gradient of all parameters together; 0: not clipped
    c.optimizer.clip_each_norm = 0.0    # of each array by itself; 0: not
    c.optimizer.accumulate = 1          # batches of one update

    c.train = ml_collections.ConfigDict()
    c.train.stop_step = 0               # stop (and save) earlier than `steps`; 0: do not
    c.train.log_every = 50
    c.train.eval_images = 64
    c.train.keep = 3                    # checkpoints
    c.train.images = 6                  # validation images drawn at each evaluation
    c.train.average_decay = 0.0         # share of the running average of the parameters that a step keeps; 0: no average
    c.train.max_skipped = 10            # stop after so many updates in a row that were not finite
    c.train.profile = ()                # (first, last): trace these steps into workdir/profile

    c.semi = ml_collections.ConfigDict()    # images without annotation, see docs/training.md
    c.semi.scheme = "none"              # "listen2student": the running average teaches the network; "cross": two networks do
    c.semi.unlabelled = ml_collections.ConfigDict()     # their sources, as data.train
    c.semi.batch_size = 0
    c.semi.augment = "flips"
    c.semi.start_step = 0               # before it only annotated images count
    c.semi.weight = 1.0                 # of the consistency terms ("cross")
    return c


def load_config(workdir: str | Path) -> ml_collections.ConfigDict:
    """The locked config of the run in `workdir`; keys that did not exist when it began are set to what it did.

    Raises:
      FileNotFoundError: no run has started there.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no run was started in this workdir. Train first: "
                                f"python train.py --config configs/<system>.py --workdir {workdir}")
    return ml_collections.ConfigDict(_tuples(_with_later_keys(json.loads(path.read_text())))).lock()


def _with_later_keys(saved: dict[str, Any]) -> dict[str, Any]:
    """A config as it was written, with the keys that did not exist yet."""
    added = [*ADDED.items(), *((part, keys) for (part, key), keys in ADDED_BESIDE.items() if key in saved.get(part, {}))]
    for part, keys in added:
        saved[part] = dict(keys) | saved.get(part, {})
    for sources in (saved["data"].get("train"), saved["data"].get("val"), saved["semi"].get("unlabelled")):
        for name, source in (sources or {}).items():
            if source.get("kind") == "folder":
                sources[name] = ADDED_TO_FOLDERS | source
    return saved


def load_changed_config(workdir: str | Path, arguments: Sequence[str]) -> ml_collections.ConfigDict:
    """The config of a run with `--config.a.b=c` applied.

    Args:
      workdir: of the run.
      arguments: of the command line; nothing but `--config...`.

    Raises:
      ValueError: an argument that is none of these, or a key that the config lacks (names near ones).
    """
    values = flags.FlagValues()
    line, config = ["", *arguments], load_config(workdir)
    with readable_flag_errors():
        flag = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=line)
        rest = values(line)[1:]
    if rest:
        raise ValueError(f"arguments that are not understood: {' '.join(rest)}; see --help.")
    return flag.value


def save_config(config: ml_collections.ConfigDict, workdir: str | Path, *, continues: bool) -> None:
    """Writes `config.json`; first checks that a run which continues has the same config as when it began.

    Args:
      config: of the command.
      workdir: of the run.
      continues: whether the workdir holds a checkpoint. Without one nothing was computed, and a mended config may be tried.

    Raises:
      ValueError: the workdir holds a run with another config; names every key that differs.
    """
    path = Path(workdir) / "config.json"
    text = json.dumps(config.to_dict(), indent=2, default=list)
    if continues and path.exists():
        written, new = json.loads(path.read_text()), _flatten(json.loads(text))
        before = _flatten(written)
        # What an earlier version lacked counts as what it did; only where the command has that key, as all kinds share one list.
        old = before | {key: value for key, value in _flatten(_with_later_keys(written)).items() if key in new}
        # What a teacher decodes is what its student learns from.
        free = tuple(key for key in FREE if key != "decode." or new.get("semi.scheme") != "listen2student")
        changed = [f"{key}: {old.get(key, '(none)')} -> {new.get(key, '(none)')}" for key in sorted({*old, *new})
                   if old.get(key) != new.get(key) and not key.startswith(free)]
        if changed:
            raise ValueError(f"{workdir} holds a run with another config; continuing would mix two experiments. Changed:\n  "
                             + "\n  ".join(changed) + "\nUse a new --workdir (--out), or the config that this run started with."
                             + (f" To train longer, start a new one with --config.pretrained={workdir}."
                                if any(line.startswith("train.steps:") for line in changed) else ""))
    partial = path.with_suffix(".tmp")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def readable_flag_errors() -> Iterator[None]:
    """Turns what absl and ml_collections raise for a wrong flag, key or config file into a ValueError of one line."""
    try:
        yield
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        text = str(error.args[0] if error.args else error).replace("\\n", "\n").replace("\\'", "'")
        if missing := re.search(r"No such file or directory: '(.+\.py)'", text):
            raise ValueError(f"--config={missing[1]}: no such file, seen from {Path.cwd()}. Name a file of the folder configs/ "
                             "in jaxcell's repository, by its whole path where that is elsewhere.") from error
        text = text.rpartition("Error: ")[2].strip('"')     # what a config file raised comes with its own traceback
        if re.fullmatch(r"'[^']*'", text):      # where no name is near, it is all that is said
            text = f"the config has no key {text}, and none with a name like it. Its file in configs/ has those that can be set."
        raise ValueError(" ".join(text.split())) from error


def read_command_line(values: flags.FlagValues, *, usage: str, text: str, required: Sequence[str]) -> bool:
    """Reads sys.argv into flags that are defined.

    Args:
      values: the flags; read with what each `DEFINE_...` returned.
      usage: the command in one line.
      text: what it does.
      required: names of flags without which it cannot.

    Returns:
      False where help was asked for: it is printed, and there is nothing to do.

    Raises:
      ValueError: a flag, config file or key that does not exist, a required flag that is missing, other arguments.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: {usage}\n\n{text}\n{values.get_help()}")
        return False
    with readable_flag_errors():
        rest = values(sys.argv)[1:]
        missing = [f"--{name}" for name in required if values[name].value is None]
        config: Any = values["config"].value if "config" in required else None
        if config is not None:
            config.to_dict()        # a config file that could not be read says so only when it is used
    if missing or rest:
        problem = f"{' and '.join(missing)} must be given" if missing else f"not understood: {' '.join(rest)}"
        raise ValueError(f"{problem}; see --help.")
    return True


def _tuples(tree: Any) -> Any:
    """JSON knows no tuples; config values that are sequences are tuples."""
    if isinstance(tree, dict):
        return {key: _tuples(value) for key, value in tree.items()}
    return tuple(_tuples(value) for value in tree) if isinstance(tree, list) else tree


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flatten(sub, f"{prefix}.{key}" if prefix else key).items()}
