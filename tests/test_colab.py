"""Every notebook runs from its first cell to its last, at toy size, and is what colab/make.py writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from jaxcell.data.sources.synthetic import SyntheticSource

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
TINY = {"VARIANT": '"toy"', "SYNTHESIS": '"toy"', "COUNT": "2", "STEPS": "2", "MINUTES": "5", "DATA": '""',
        "SETTINGS": '{"train.log_every": 1}'}


def shrunken(source: str) -> str:
    """The parameters at toy size: names stay those of the notebook."""
    names = [line.split(" = ")[0] for line in source.splitlines() if not line.startswith("#")]
    return "\n".join(f"{name} = {TINY[name]}" for name in names)


def flat_folder(path):
    """Six annotated images in one folder, as a user may have them."""
    path.mkdir()
    for number, sample in enumerate(SyntheticSource(6, size=64, seed=3)):
        Image.fromarray(sample.image[..., 0]).save(path / f"{number}.png")
        Image.fromarray(sample.labels.max(-1).astype(np.uint8)).save(path / f"{number}_label.png")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    parameters, = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = shrunken(parameters.source)
    if path.stem == "contour_proposal":
        parameters.source += f"\nDATA = {str(flat_folder(tmp_path / 'mine'))!r}"
    (tmp_path / "site").mkdir()     # the package is found, as after a restart of the kernel; configs/ is not yet
    (tmp_path / "site" / "jaxcell").symlink_to(ROOT / "jaxcell")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("XLA_FLAGS", "")
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
    pictures = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
                if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
    if path.stem == "synthesis":
        assert (tmp_path / "made" / "manifest.csv").exists()
    else:
        assert (tmp_path / "results" / "cells.csv").exists() and (tmp_path / "results.zip").exists()
        assert list((tmp_path / "results").glob("*_labels.tif"))


def test_notebooks_are_those_that_the_script_writes(tmp_path):
    """Edit colab/make.py and run it, not the notebooks."""
    systems = {"contour_proposal", "mesmer", "maunet", "morphoseg", "sparse_seunet"}
    assert {path.stem for path in NOTEBOOKS} == systems | {"synthesis"}
    copy = tmp_path / "make.py"
    copy.write_text((ROOT / "colab" / "make.py").read_text())
    subprocess.run([sys.executable, str(copy)], check=True, env=os.environ)
    for path in NOTEBOOKS:
        assert (tmp_path / path.name).read_text() == path.read_text()
