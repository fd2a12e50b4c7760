"""Cells from semantic planes: what is cell is cut into cells by a watershed. It cannot recover what lies under another cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from scipy import ndimage
from scipy.special import expit

from jaxcell.decode.components import instances_from_labels, relabel, remove_small
from jaxcell.decode.watershed import h_maxima, seeded_watershed
from jaxcell.types import Instances

__all__ = ["MARKERS", "decode_planes", "markers_in_the_middle", "markers_of_nuclei", "plane_probabilities"]


def markers_in_the_middle(depth: np.ndarray, nuclei: np.ndarray | None, *, prominence: float, radius: int) -> np.ndarray:
    """Where the depth has a peak.

    Args:
      depth: [H, W] float32, distance to what is no cell or border, pixels.
      nuclei: not looked at.
      prominence: by which a peak stands out, pixels, see `h_maxima`.
      radius: of its neighbourhood, pixels.

    Returns:
      [H, W] bool.
    """
    return h_maxima(depth, prominence, radius=radius)


def markers_of_nuclei(depth: np.ndarray, nuclei: np.ndarray | None, *, prominence: float, radius: int) -> np.ndarray:
    """The nuclei, for cells with one each; arguments and result as in `markers_in_the_middle`.

    Raises:
      ValueError: the network draws none.
    """
    if nuclei is None:
        raise ValueError("the markers 'nuclei' need a head 'nuclei', which this network has not; use "
                         "config.decode.markers=middle.")
    return nuclei


MARKERS: Mapping[str, Callable[..., np.ndarray]] = {"middle": markers_in_the_middle, "nuclei": markers_of_nuclei}
"""name -> (depth, nuclei, prominence, radius) -> where a cell begins [H, W] bool."""


def plane_probabilities(outputs: Mapping[str, np.ndarray], *, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The planes that a network draws: logits [..., H, W, 1] -> name -> probabilities [..., H, W, 1]; others are left out."""
    return {name: expit(outputs[name]) for name in names}


def decode_planes(outputs: Mapping[str, np.ndarray], *, threshold: float = 0.5, markers: str = "middle", prominence: float = 1.0,
                  radius: int = 2, smoothing: float = 1.0, least_pixels: int = 15) -> Instances:
    """The cells of one region by a watershed of the distance to the edge of what is cell and no border.

    Args:
      outputs: logits [H, W, 1]: cytoplasm, and, where the network draws them, border and nuclei. Without cytoplasm the nuclei
        are the cells.
      threshold: of probabilities, in (0, 1).
      markers: an entry of `MARKERS`.
      prominence: of peaks of the distance, pixels.
      radius: of a peak's neighbourhood, pixels, at least 1.
      smoothing: standard deviation of a Gaussian over the distance, pixels; 0 for none.
      least_pixels: smaller cells are dropped.

    Returns:
      Instances without overlaps; their scores are the mean probability of cytoplasm, or of nuclei without it.

    Raises:
      ValueError: another word as `markers`, or nuclei that are not there.

    Source: the thesis, section 5.7 ("SEU-Net + wtshd"), which says no more than the name.
    """
    if markers not in MARKERS:
        raise ValueError(f"decode_planes: markers={markers!r} is unknown; known are {', '.join(MARKERS)}.")
    names = [name for name in ("cytoplasm", "border", "nuclei") if name in outputs]
    cell = "cytoplasm" if "cytoplasm" in names else "nuclei"
    planes = {name: value[..., 0] for name, value in plane_probabilities(outputs, names=names).items()}
    above = {name: value > threshold for name, value in planes.items()}
    inside = above[cell]
    core = inside & ~above["border"] if "border" in above else inside
    depth = ndimage.gaussian_filter(_depth(core), smoothing) if smoothing else _depth(core)
    nuclei = above["nuclei"] & inside if "nuclei" in above else None
    found = MARKERS[markers](depth, nuclei, prominence=prominence, radius=radius) & inside
    numbered, _ = ndimage.label(found, np.ones((3, 3)))
    labels = remove_small(seeded_watershed(-depth, numbered.astype(np.int32), inside), least_pixels)
    return instances_from_labels(relabel(labels), planes[cell])


def _depth(inside: np.ndarray) -> np.ndarray:
    """[H, W] float32, distance to the nearest pixel that is not inside; the image's edge is no end, unless nothing else is."""
    frame = int(inside.all())
    padded = np.pad(inside, frame).view(np.uint8)
    # OpenCV's last digit changes from call to call; its squares are whole numbers.
    distance = np.sqrt(np.rint(np.square(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))))
    return distance[frame:padded.shape[0] - frame, frame:padded.shape[1] - frame]
