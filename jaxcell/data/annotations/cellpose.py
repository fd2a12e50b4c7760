"""The masks of Cellpose's session files (`_seg.npy`), read without running what such a file may hold.

A session is a dictionary that numpy wrote as a pickle, and a pickle is a program: loading it the usual way does whatever the
file says. Here its instructions are only read: those that build numbers, texts, lists and dictionaries are followed, a call is
noted and never made, and one of anything but numpy's arrays is refused. The array is then made from its bytes.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["is_session", "read_cellpose"]

MOST_GB = 8.0
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
VALUES = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
          "BINUNICODE8", "UNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
CONTAINERS: Mapping[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
ARRAYS = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}      # numpy 1 and 2
KNOWN = ARRAYS | {"numpy.ndarray", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
                  "_codecs.encode",
                  *(f"pathlib{local}.{kind}" for local in ("", "._local") for kind in ("PosixPath", "WindowsPath"))}
"""What a session may name: numpy's arrays and numbers, bytes in old pickles, and paths."""


@dataclass
class _Call:
    """What a pickle asks to be called or filled; nobody does."""

    name: str
    arguments: Any = None
    state: Any = None


def is_session(path: Path) -> bool:
    """Whether a `.npy` file holds Python objects instead of numbers."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            return version == (1, 0) and np.lib.format.read_array_header_1_0(file)[2].hasobject
        except Exception:       # a header may be damaged in many ways; who reads the numbers says how
            return False


def read_cellpose(path: Path) -> np.ndarray:
    """The masks of a session file.

    Args:
      path: a `.npy` file that `is_session`.

    Returns:
      [H, W] numbers, 0 background.

    Raises:
      ValueError: no session, a stack of planes, or a file that asks for anything but numpy arrays and plain containers.
    """
    if (size := path.stat().st_size) > MOST_GB * 2**30:
        raise ValueError(f"{path}: has {size / 2**30:.0f} GB; {MOST_GB:.0f} GB are the most. Save its masks as TIFF.")
    try:
        session = _session(_run(_pickle_of(path)))
        masks = _array(session["masks"]) if "masks" in session else None
    except Exception as error:      # a damaged pickle fails anywhere
        raise ValueError(f"{path}: cannot be read as a session of Cellpose: {str(error)[:99]}. If you trust the file, open it in "
                         "Cellpose and save its masks as TIFF or PNG.") from error
    if masks is None:
        keys = ", ".join(repr(key)[:20] for key in list(session)[:9])
        raise ValueError(f"{path}: has no 'masks', so it is no session of Cellpose; it has {keys}. Save label images as "
                         "plain arrays.")
    masks = masks[0] if masks.ndim == 3 and len(masks) == 1 else masks
    if masks.ndim != 2:
        raise ValueError(f"{path}: its masks have the shape {masks.shape}, but an image here is one plane [H, W]. Save each "
                         "plane's masks as a TIFF of its own.")
    return masks


def _pickle_of(path: Path) -> bytes:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.read()


def _session(content: Any) -> Mapping[Any, Any]:
    """The dictionary in numpy's array of one object."""
    objects = content.state[4] if isinstance(content, _Call) and content.name in ARRAYS else None
    if not isinstance(objects, list) or len(objects) != 1 or not isinstance(objects[0], dict):
        raise ValueError("it is no dictionary")
    return objects[0]


def _array(call: Any) -> np.ndarray:
    if not isinstance(call, _Call) or call.name not in ARRAYS:
        raise ValueError(f"its masks are no array but a {type(call).__name__}")
    _, shape, kind, by_columns, data = call.state
    if isinstance(data, _Call):     # protocol 2 writes bytes as text
        data = data.arguments[0].encode("latin1")
    code, order = kind.arguments[0], kind.state[1]
    if not re.fullmatch("[<>|=][biuf][1248]", f"{order}{code}"):
        raise ValueError("its masks are no numbers")
    return np.frombuffer(data, np.dtype(f"{order}{code}")).reshape(shape, order="F" if by_columns else "C")


def _run(data: bytes) -> Any:
    """What a pickle builds, with `_Call` in the place of every call."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in VALUES or name in CONSTANTS or name in CONTAINERS:
            stack.append(CONTAINERS[name]() if name in CONTAINERS else CONSTANTS.get(name, argument))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in TUPLES:
            stack[-TUPLES[name]:] = [tuple(stack[-TUPLES[name]:])]
        elif name == "TUPLE":
            stack.append(tuple(_above(marks.pop(), stack)))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else _above(marks.pop(), stack)
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _above(marks.pop(), stack)
            _fill(stack[-1], items)
        elif name == "MEMOIZE" or name.endswith("PUT"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_named(argument.replace(" ", ".") if name == "GLOBAL" else f"{stack.pop(-2)}.{stack.pop()}"))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_Call(stack.pop().name, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it holds the instruction {name}, which no session needs")
    raise ValueError("it ends too early")


def _named(name: str) -> _Call:
    if name not in KNOWN:
        raise ValueError(f"it asks for {name[:80]!r}, which a session has no use for and which is not run")
    return _Call(name)


def _fill(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int, float)):      # hashing a deep tuple can end the interpreter
            raise ValueError(f"it has a {type(key).__name__} as a key")
        target[key] = value


def _above(mark: int, stack: list[Any]) -> list[Any]:
    """Takes what lies above a mark off the stack."""
    items = stack[mark:]
    del stack[mark:]
    return items
