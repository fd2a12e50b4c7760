"""Writes the notebooks of this folder, so that what they share is said once: python colab/make.py

A notebook calls what `train.py`, `evaluate.py` and `jaxcell` call, and has no logic of its own. tests/test_colab.py runs each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
REPOSITORY = "https://github.com/jaxcell/jaxcell"


@dataclass(frozen=True)
class Task:
    """What differs between notebooks of systems.

    Attributes:
      title, about: Markdown.
      example: options of the synthetic microscope that draws example images.
      size: of the example images, pixels.
      images: that are drawn to train with; an eighth as many to look at.
      steps, minutes: of training.
      settings: other keys of the config.
    """

    title: str
    about: str
    example: str
    size: int = 256
    images: int = 48
    steps: int = 400
    minutes: int = 10
    settings: str = "{}"


TASKS = {
    "contour_proposal": Task(
        "Contour proposal networks", "Every pixel proposes a whole outline (Fourier descriptors) with a score and four boundary "
        "uncertainties; the best proposals stay. Cells may overlap. Upschulte et al., NeurIPS 2022 cell segmentation challenge.",
        'modality="fluorescence"'),
    "mesmer": Task(
        "Mesmer", "A feature pyramid draws the distance inside of each cell and where its interior is; a watershed grows cells "
        "from the peaks. Yi et al. (LIVECell); Greenwald et al., Nature Biotechnology 2022.",
        'modality="phase", radius=(10.0, 16.0)'),
    "maunet": Task(
        "MAUNet", "Two decoders for classes (with an anti-ambiguity proxy) and a distance, and three watersheds: for images of "
        "many kinds. Li et al., NeurIPS 2022 cell segmentation challenge.", 'modality="mixed"', steps=700, minutes=15),
    "morphoseg": Task(
        "MorphoSeg", "A vision transformer with a U-Net's decoder that learns from outliers which it draws itself, for irregular "
        "cells; every pixel and every cell has an uncertainty. Zhang et al.",
        'modality="phase", shape="irregular", radius=(14.0, 20.0)'),
    "sparse_seunet": Task(
        "SparseSEU-Net", "A list of masks instead of a map: cells that overlap are both whole. Prytula's thesis; Cheng et al., "
        "SparseInst, CVPR 2022.", 'modality="phase", overlap=0.6, radius=(6.0, 9.0)', size=64, images=256, steps=2000, minutes=15,
        settings='{"data.crop": 64}      # pixels, and of the tiles of a prediction: a crop should hold some cells whole'),
}

INSTALL = f"""\
# On Colab: the repository beside this notebook, and what it needs. The runtime's own jax (CPU, GPU or TPU) stays as it is.
import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("jaxcell") is None:
    !git clone -q {REPOSITORY} jaxcell-repository
    !pip freeze | grep -iE "^jax(lib)?==" > /tmp/runtime.txt
    !pip install -q -c /tmp/runtime.txt -e ./jaxcell-repository
    sys.path.append(str(Path("jaxcell-repository").resolve()))
sys.path.append(str(Path(importlib.util.find_spec("jaxcell").origin).resolve().parents[1]))     # configs/ lies beside it"""

DOCTOR = """\
from jaxcell import doctor
for fact, value in doctor.facts().items():
    print(f"{fact:24} {value}")"""

PARAMETERS = """\
# Your folder: x.png with x_label.png, or sorted into train/ and val/, or with a manifest.csv; `jaxcell data convert` makes one of
# other layouts (docs/data.md). "": example images are drawn.
DATA = ""
VARIANT = "own"     # of configs/{system}.py
STEPS = {steps}        # of training; MINUTES end it earlier
MINUTES = {minutes}
# Other keys of the config, such as {{"data.planes": (0, 2)}}
SETTINGS = {settings}"""

EXAMPLE = """\
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.export.layouts import convert

DATA = DATA or "example"
if not Path(DATA).exists():
    drawn = {{split: SyntheticSource(count, size={size}, seed=seed, {example})
             for split, count, seed in (("train", {images}, 1), ("val", {unseen}, 2))}}
    print(convert(drawn, DATA, kind="folder"))"""

SHEET = """\
from IPython.display import Image, display
from jaxcell.cli import main

main(["data", "view", DATA, "--out", "sheet.png", "--count", "6"])
display(Image("sheet.png"))"""

TRAIN = """\
from configs.{system} import get_config
from jaxcell.train import train

config = get_config(VARIANT)
config.data.root = DATA
config.train.steps = STEPS
config.train.eval_every = max(1, STEPS // 2)
config.lock()       # a key that does not exist is an error
config.update_from_flattened_dict(SETTINGS)
train(config, "run", minutes=MINUTES, allow_cpu=True)
display(Image("run/curves.png"))"""

LOOK = """\
import PIL.Image
from jaxcell import viz
from jaxcell.data.sources.folder import FolderSource
from jaxcell.evaluate import load_predictor
from jaxcell.types import Instances

predict = load_predictor("run")
sample = FolderSource(DATA, split="val")[0]
cells = predict(sample.image)
print(len(cells), "cells; scores", cells.scores[:5], "; more of each cell:", *cells.extras)
picture = viz.overlay(sample.image, cells, truth=Instances.from_labels(sample.labels))
display(PIL.Image.fromarray(picture))"""

EXPORT = """\
import shutil
from jaxcell.inference.predict import predict_files

predict_files(FolderSource(DATA, split="val").files, "results", predict=predict)
print(open("results/cells.csv").read()[:600])
shutil.make_archive("results", "zip", "results")      # download results.zip: label TIFFs, overlays, COCO, the table of cells"""

PAIRS = """\
VARIANT = "synthetic"       # of configs/pix2pix.py; "paper" on your own pairs of phase contrast and brightfield
SYNTHESIS = "pairs"         # of configs/synthesis.py
COUNT = 100                 # images to compose
STEPS = 2000
MINUTES = 15"""

TRANSLATE = """\
from IPython.display import Image, display
from configs.pix2pix import get_config
from jaxcell.train import train

config = get_config(VARIANT)
config.train.steps = STEPS
config.train.eval_every = max(1, STEPS // 2)
train(config, "pairs", minutes=MINUTES, allow_cpu=True)
display(Image("pairs/curves.png"))"""

PICTURES = """\
from pathlib import Path

newest = sorted(Path("pairs/pictures").iterdir())[-1]
display(Image(sorted(newest.iterdir())[0]))"""

SYNTHESIZE = """\
from configs.synthesis import get_config as get_synthesis
from jaxcell.synthesize import synthesize

synthesis = get_synthesis(SYNTHESIS)
synthesis.count.train = COUNT
for folder, translator in (("composed", ""), ("made", "pairs")):
    synthesis.translator = translator
    if not Path(folder).exists():
        print(folder, synthesize(synthesis, folder))"""

COMPOSED = """\
from jaxcell.cli import main

for folder in ("composed", "made"):
    main(["data", "view", folder, "--out", f"{folder}.png", "--count", "4"])
    display(Image(f"{folder}.png"))"""


def notebook(name: str, cells: list[tuple[str, str]]) -> None:
    """Writes one; cells are (tag or "markdown", source)."""
    made = []
    for number, (tag, source) in enumerate(cells):
        cell = nbformat.v4.new_markdown_cell(source) if tag == "markdown" else nbformat.v4.new_code_cell(source)
        cell["id"] = f"{name}-{number}".replace("_", "-")
        if tag == "parameters":
            cell["metadata"]["tags"] = ["parameters"]
        made.append(cell)
    whole = nbformat.v4.new_notebook(cells=made, metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "colab": {"provenance": []}, "accelerator": "GPU"})
    nbformat.validate(whole)
    (HERE / f"{name}.ipynb").write_text(nbformat.writes(whole) + "\n")


def badge(name: str) -> str:
    address = f"{REPOSITORY.removeprefix('https://')}/blob/main/colab/{name}.ipynb".removeprefix("github.com")
    colab = "https://colab.research.google.com"
    return f"[![Open In Colab]({colab}/assets/colab-badge.svg)]({colab}/github{address})"


def main() -> None:
    """All notebooks."""
    for system, task in TASKS.items():
        notebook(system, [
            ("markdown", f"# {task.title}\n\n{badge(system)}\n\n{task.about}"),
            ("install", INSTALL), ("doctor", DOCTOR),
            ("markdown", "## Images\n\nYour own, or examples from the synthetic microscope."),
            ("parameters", PARAMETERS.format(system=system, steps=task.steps, minutes=task.minutes, settings=task.settings)),
            ("example", EXAMPLE.format(example=task.example, size=task.size, images=task.images, unseen=task.images // 8)),
            ("sheet", SHEET),
            ("markdown", f"## Train\n\nA small network; `configs/{system}.py` has the published ones. Run the cell again to go "
             "on."),
            ("train", TRAIN.format(system=system)),
            ("markdown", "## Look\n\nTruth on the left, prediction on the right."), ("look", LOOK),
            ("markdown", "## Take away"), ("export", EXPORT)])
    notebook("synthesis", [
        ("markdown", f"# Training data out of cells\n\n{badge('synthesis')}\n\nCells are cut out of annotated phase contrast, "
         "changed, and added up in new images, so that overlaps are known exactly; pix2pix turns phase contrast into "
         "brightfield."),
        ("install", INSTALL), ("doctor", DOCTOR), ("parameters", PAIRS),
        ("markdown", "## Learn brightfield from pairs"), ("train", TRANSLATE),
        ("markdown", "Shown, the two planes that the network makes, and the two real ones:"), ("look", PICTURES),
        ("markdown", "## Compose\n\nBoth folders are read by `train.py` as they are."), ("synthesize", SYNTHESIZE),
        ("look", COMPOSED)])


if __name__ == "__main__":
    main()
