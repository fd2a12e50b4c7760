"""Pixel sizes and channel names in the XML that microscopes write."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

from jaxcell.data.formats.stored import Refused

__all__ = ["MICROMETRES", "ome_channel_names", "ome_pixel_size", "ome_pixels", "one_size", "parse_xml"]

MICROMETRES = {"um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "\\u00B5m": 1.0, "micron": 1.0, "microns": 1.0,
               "micrometer": 1.0, "micrometers": 1.0, "micrometre": 1.0, "nm": 1e-3, "nanometer": 1e-3, "mm": 1e3,
               "millimeter": 1e3, "meter": 1e6}
"""Unit, as OME, OME-Zarr and ImageJ spell it (ImageJ also escaped) -> micrometres. Centimetres and inches are left out: where
programs write them they come from a made-up number of dots per inch."""


def parse_xml(text: str) -> ElementTree.Element:
    """The root of XML metadata.

    Raises:
      Refused: malformed, or with a document type: entities can expand without bounds, and no microscope writes them.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Refused("its XML metadata declares a document type, which could expand without bounds; save it anew without.")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise Refused(f"its XML metadata is malformed ({error}), so its axes and channels are unknown; save it anew.") from error


def ome_pixels(root: ElementTree.Element) -> list[ElementTree.Element]:
    """The Pixels elements of OME-XML, one an image."""
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"]


def ome_pixel_size(pixels: ElementTree.Element) -> float | None:
    """Micrometres of PhysicalSizeX, where PhysicalSizeY is the same or absent."""
    def along(axis: str) -> float | None:
        value = pixels.get(f"PhysicalSize{axis}")
        return None if value is None else micrometres(value, pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m"))

    x, y = along("X"), along("Y")
    return one_size(x, x if y is None else y)


def ome_channel_names(pixels: ElementTree.Element) -> tuple[str, ...]:
    """The names of the channels, empty where one has none."""
    return tuple(element.get("Name", "") for element in pixels if element.tag.rpartition("}")[2] == "Channel")


def micrometres(value: object, unit: object, *, units: Mapping[str, float] = MICROMETRES) -> float:
    """A length in micrometres; 0 where number or unit make no sense."""
    try:
        return float(str(value)) * units.get(str(unit), 0.0)
    except ValueError:
        return 0.0


def one_size(x: float | None, y: float | None) -> float | None:
    """The size of a square pixel: None where a side is unknown, not above 0, or different from the other."""
    if x is None or y is None or not 0 < x < float("inf") or abs(x - y) > 1e-6 * x:
        return None
    return x
