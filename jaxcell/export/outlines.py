"""Outlines along pixel edges, as QuPath and ImageJ draw areas: filled again they give the very pixels back."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from scipy import ndimage

__all__ = ["pixel_outlines"]

Vertex = tuple[int, int]

SIDES = (((-1, 0), (0, 0), (0, 1)), ((0, 1), (0, 1), (1, 1)), ((1, 0), (1, 1), (1, 0)), ((0, -1), (1, 0), (0, 0)))
"""(neighbour of a pixel, start and stop of the edge between them), clockwise."""


def pixel_outlines(mask: np.ndarray) -> list[list[np.ndarray]]:
    """The outlines of the pieces of a cell along the edges of its pixels.

    Args:
      mask: [H, W] bool. Pixels that touch at a corner only lie in different pieces.

    Returns:
      For every 4-connected piece its rings: the outer one, then its holes. A ring is [P, 2] int32 (y, x), the corners in order,
      none of them twice; pixel (0, 0) is the square from (0, 0) to (1, 1). Outer rings run clockwise on the screen, holes the
      other way.
    """
    pieces, count = ndimage.label(mask)
    return [sorted(_rings(pieces == number), key=_extent, reverse=True) for number in range(1, count + 1)]


def _extent(ring: np.ndarray) -> int:
    """Side lengths of the ring's box, added: that of the outer ring is the largest of a piece."""
    return int(np.ptp(ring, axis=0).sum())


def _rings(mask: np.ndarray) -> list[np.ndarray]:
    """Closed lines with the mask on their right, made of the edges between a pixel inside and one outside."""
    padded = np.pad(mask, 1)
    ways: dict[Vertex, list[Vertex]] = defaultdict(list)     # corner of a pixel -> corners that an edge leads to
    for (row, column), start, stop in SIDES:
        outside = ~padded[1 + row:padded.shape[0] - 1 + row, 1 + column:padded.shape[1] - 1 + column]
        for y, x in np.argwhere(mask & outside).tolist():
            ways[y + start[0], x + start[1]].append((y + stop[0], x + stop[1]))
    rings = []
    while ways:
        path = [next(iter(ways))]
        places = {path[0]: 0}
        while path:
            following = ways[path[-1]].pop()
            if not ways[path[-1]]:
                del ways[path[-1]]
            if following not in places:
                places[following] = len(path)
                path.append(following)
                continue
            # Where two pixels touch at a corner the line passes twice: cut there, no ring may touch itself.
            first = places[following]
            rings.append(_corners(path[first:]))
            for place in path[first:]:
                del places[place]
            del path[first:]
            if path:
                places[following] = len(path)
                path.append(following)
    return rings


def _corners(path: list[Vertex]) -> np.ndarray:
    """The points of a closed path of unit steps at which it turns."""
    points = np.asarray(path, np.int32)
    turns = (points - np.roll(points, 1, axis=0) != np.roll(points, -1, axis=0) - points).any(axis=1)
    return points[turns]
