"""tensorflow-datasets builders of the sources: `build("bbbc038", "downloads/bbbc038", "tfds")` writes array_record files.

tensorflow-datasets is slow to import, so nothing else imports this module; TensorFlow is not needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxcell.data.sources.bbbc038 import Bbbc038Source
from jaxcell.data.sources.bbbc039 import Bbbc039Source
from jaxcell.data.sources.cellpose import CellposeSource
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.livecell import LiveCellSource
from jaxcell.data.sources.neurips2022 import Neurips2022Source
from jaxcell.data.sources.nt2 import Nt2Source
from jaxcell.data.sources.omnipose import OmniposeSource
from jaxcell.data.sources.paired import PairedSource
from jaxcell.data.sources.sartorius import SartoriusSource
from jaxcell.data.tfds.examples import to_example
from jaxcell.data.tfds.records import features

__all__ = ["BUILDERS", "SourceBuilder", "build"]

NO_SPLIT = "unsplit"
"""The split of samples that belong to none."""


class SourceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):   # type: ignore[call-arg]
    """Writes the samples of a source in their order, its splits as splits. The data are downloaded by hand.

    Attributes:
      open: folder -> source.
      citation: of the data set's paper.
      homepage: where to get it.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Download and unpack the data set from its homepage; the manual folder is the one it lies in."
    # Beside the code it would look for checksums of downloads, with a package that tensorflow-datasets 4.9.10 forgot to require.
    code_path = None
    open: Callable[[Path], PairedSource]
    citation: str = ""
    homepage: str | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=type(self).__doc__, features=features(), citation=self.citation,
                                     homepage=self.homepage, disable_shuffling=True, metadata=tfds.core.MetadataDict(names={}))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        source = self.open(Path(dl_manager.manual_dir))
        splits = list(dict.fromkeys(source.splits))
        places = {split: [i for i, other in enumerate(source.splits) if other == split] for split in splits}
        self.info.metadata["names"] = {split or NO_SPLIT: [source.names[i] for i in places[split]] for split in splits}
        return {split or NO_SPLIT: self._generate_examples(source, places[split]) for split in splits}

    def _generate_examples(self, source: PairedSource, places: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        return ((number, to_example(source[place])) for number, place in enumerate(places))


class Bbbc038(SourceBuilder):
    """BBBC038: nuclei in fluorescence, stained tissue and cytology, from the 2018 Data Science Bowl."""

    name, open = "bbbc038", Bbbc038Source
    homepage = "https://bbbc.broadinstitute.org/BBBC038"
    citation = "Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, Nat Methods 16, 2019"


class Bbbc039(SourceBuilder):
    """BBBC039: Hoechst-stained nuclei of U2OS cells in a chemical screen."""

    name, open = "bbbc039", Bbbc039Source
    homepage = "https://bbbc.broadinstitute.org/BBBC039"
    citation = "Caicedo et al., Evaluation of deep learning strategies for nucleus segmentation, Cytometry Part A 95, 2019"


class Livecell(SourceBuilder):
    """LIVECell: eight cell types in phase contrast, grown from sparse to confluent."""

    name, open = "livecell", LiveCellSource
    homepage = "https://sartorius-research.github.io/LIVECell"
    citation = "Edlund et al., LIVECell - a large-scale dataset for label-free live cell segmentation, Nature Methods 18, 2021"


class Neurips2022(SourceBuilder):
    """The labelled images of the NeurIPS 2022 challenge of cell segmentation in multi-modality microscopy."""

    name, open = "neurips2022", Neurips2022Source
    homepage = "https://zenodo.org/records/10719375"
    citation = "Ma et al., The multimodality cell segmentation challenge: toward universal solutions, Nature Methods 21, 2024"


class Neurips2022Unlabelled(SourceBuilder):
    """The unlabelled training images of the NeurIPS 2022 challenge, without its whole slides."""

    name, open = "neurips2022_unlabelled", staticmethod(partial(Neurips2022Source, labelled=False))
    homepage, citation = Neurips2022.homepage, Neurips2022.citation


class Nt2(SourceBuilder):
    """NT2 stem cells in brightfield while they become neurons, the data of MorphoSeg."""

    name, open = "nt2", Nt2Source
    homepage = "https://doi.org/10.15131/shef.data.25604421"
    citation = "Zhang et al., MorphoSeg: an uncertainty-aware deep learning framework, Neurocomputing, 2025"


class Sartorius(SourceBuilder):
    """Neurons, astrocytes and SH-SY5Y cells in phase contrast, with overlaps, from Sartorius' Kaggle competition."""

    name, open = "sartorius", SartoriusSource
    homepage = "https://www.kaggle.com/c/sartorius-cell-instance-segmentation"
    citation = "Howard et al., Sartorius - Cell Instance Segmentation, Kaggle, 2021"


class SartoriusUnlabelled(SourceBuilder):
    """The images of Sartorius' Kaggle competition that have no annotation."""

    name, open = "sartorius_unlabelled", staticmethod(partial(SartoriusSource, labelled=False))
    homepage, citation = Sartorius.homepage, Sartorius.citation


class Omnipose(SourceBuilder):
    """Bacteria in phase contrast and fluorescence, and worms, that Omnipose was trained on."""

    name, open = "omnipose", OmniposeSource
    homepage = "https://osf.io/xmury"
    citation = "Cutler et al., Omnipose: a high-precision morphology-independent solution, Nature Methods 19, 2022"


class Cellpose(SourceBuilder):
    """Cells of many kinds, and other things that look alike, that Cellpose was trained on."""

    name, open = "cellpose", CellposeSource
    homepage = "https://www.cellpose.org/dataset"
    citation = "Stringer et al., Cellpose: a generalist algorithm for cellular segmentation, Nature Methods 18, 2021"


class Folder(SourceBuilder):
    """Images of one folder with their labels, as `FolderSource` reads them."""

    name, open = "folder", FolderSource


BUILDERS: Mapping[str, type[SourceBuilder]] = {
    builder.name: builder for builder in (Bbbc038, Bbbc039, Cellpose, Folder, Livecell, Neurips2022, Neurips2022Unlabelled, Nt2,
                                          Omnipose, Sartorius, SartoriusUnlabelled)
}
"""kind -> builder."""


def build(kind: str, root: str | Path, data_dir: str | Path) -> Path:
    """Writes a data set as array_record files.

    Args:
      kind: a key of `BUILDERS`.
      root: the folder of the data set as it was downloaded.
      data_dir: where to write; it becomes `data_dir/kind/version`.

    Returns:
      The folder that was written: what `TfdsSource` opens, or `tfds.builder_from_directory`.

    Raises:
      FileNotFoundError: the data set is not there, or incomplete.
      ValueError: an unknown kind, a folder that exists already, or a sample that cannot be read.
    """
    if kind not in BUILDERS:
        raise ValueError(f"tfds builder {kind!r} is unknown; known are {', '.join(BUILDERS)}.")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: no such folder; {BUILDERS[kind].MANUAL_DOWNLOAD_INSTRUCTIONS}")
    builder = BUILDERS[kind](data_dir=Path(data_dir).absolute(), file_format="array_record")
    if Path(builder.data_dir).exists():
        raise ValueError(f"{builder.data_dir}: exists already; remove it, or write elsewhere.")
    with tempfile.TemporaryDirectory() as nothing:
        builder.download_and_prepare(download_dir=nothing, download_config=tfds.download.DownloadConfig(
            manual_dir=Path(root).absolute(), compute_stats=tfds.download.ComputeStatsMode.SKIP))
    return Path(builder.data_dir)
