"""Reads tensors that PyTorch wrote, without PyTorch and without running anything that the file says."""

from __future__ import annotations

import functools
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

__all__ = ["read_checkpoint"]

_BFLOAT16 = "bfloat16"   # numpy has none: read as uint16 and widened to float32

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": _BFLOAT16,
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": _BFLOAT16, "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "BOOL": "bool",
}
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)     # how files of PyTorch before 1.6 begin
_CONTAINERS = ("state_dict", "model_state_dict", "model")


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a checkpoint file: name -> array.

    Args:
      path: a file of `torch.save` (also of PyTorch before 1.6), of safetensors or of `numpy.savez`; told by content. The state
        dict may sit in a container under "state_dict", "model_state_dict" or "model", and its names may all start with
        "module." (left off).

    Returns:
      Arrays as stored, read-only, in the order of the file; bfloat16 becomes float32.

    Raises:
      ValueError: another format, damaged, or the file asks for anything but tensors and plain containers.
    """
    path = Path(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
            tensors = _read_zip(archive, pickles[0], path) if pickles else _read_npz(path)
    else:
        with path.open("rb") as file:
            legacy = file.read(len(_LEGACY)) == _LEGACY
        tensors = _read_legacy(path) if legacy else _read_safetensors(path)
    tensors = _state_dict(tensors, path)
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    return tensors


def _state_dict(content: Any, path: Path) -> dict[str, np.ndarray]:
    """Descends into the containers that training scripts wrap around a state dict."""
    while isinstance(content, Mapping):
        inner = [name for name in _CONTAINERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    others = ([name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, np.ndarray))]
              if isinstance(content, Mapping) else [type(content).__name__])
    if others:
        raise ValueError(f"{path}: not tensors: {others[:5]}; a checkpoint must be a state dict, or a container with one under "
                         f"{', '.join(_CONTAINERS)}. Save model.state_dict().")
    return dict(content)


def _as_array(data: bytes, dtype: str, order: Literal["<", ">"] = "<") -> np.ndarray:
    """Bytes -> flat array."""
    if dtype == _BFLOAT16:
        return (np.frombuffer(data, np.dtype("uint16").newbyteorder(order)).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder(order)).astype(dtype, copy=False)


def _itemsize(dtype: str) -> int:
    return 2 if dtype == _BFLOAT16 else np.dtype(dtype).itemsize


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors, ordered dicts and built-in containers; every other global is refused by its name."""

    def __init__(self, file: IO[bytes], path: Path, storage: Callable[..., np.ndarray]) -> None:
        """Reads one pickle.

        Args:
          file: at its beginning.
          path: for messages.
          storage: (dtype, key, and what else the file says of it) -> flat array.
        """
        super().__init__(file)
        self._path, self._storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }
        if (module, name) in allowed:
            return allowed[module, name]
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _STORAGES[name]
        raise ValueError(f"{self._path}: the file asks for {module}.{name}; only tensors and plain containers are read, because "
                         "anything else could run code. Save model.state_dict() instead of the model.")

    def persistent_load(self, pid: Any) -> np.ndarray:
        return self._storage(*pid[1:])

    def _tensor(self, storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
        """A view into a storage, after checking that it stays inside."""
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if math.prod(shape) and (offset < 0 or min(strides, default=0) < 0 or last >= storage.size):
            raise ValueError(f"{self._path}: a tensor of shape {tuple(shape)} reaches outside its storage of {storage.size} "
                             "numbers; the file is damaged. Fetch it again.")
        steps = tuple(step * storage.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)

    def _parameter(self, data: np.ndarray, *_: Any) -> np.ndarray:
        return data


def _read_zip(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    """What PyTorch 1.6 and later write: a pickle, and a file for each storage beside it."""
    root = name.removesuffix("data.pkl")
    order: Literal["<", ">"] = "<"
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") == b"big":
        order = ">"

    @functools.cache
    def stored(dtype: str, key: str) -> np.ndarray:
        return _as_array(archive.read(f"{root}data/{key}"), dtype, order)

    with archive.open(name) as file:
        return _TensorUnpickler(file, path, lambda dtype, key, *_: stored(dtype, key)).load()


def _read_legacy(path: Path) -> Any:
    """What PyTorch before 1.6 wrote: five pickles (magic number, version, machine, content, keys), then the storages.

    The content is unpickled twice: to learn the storages' types, which stand only there, and with what they hold.
    """
    size, dtypes = path.stat().st_size, dict[str, str]()

    def unexpected(*_: Any) -> np.ndarray:
        raise _damaged(path)

    def plain(file: IO[bytes]) -> Any:
        return _TensorUnpickler(file, path, unexpected).load()

    def announced(dtype: str, key: str, _: str, count: int, view: Any = None) -> np.ndarray:
        if not 0 <= count * _itemsize(dtype) <= size or view is not None:
            raise _damaged(path)
        dtypes[key] = dtype
        return np.zeros(count, np.uint8)

    with path.open("rb") as file:
        plain(file), plain(file)
        order: Literal["<", ">"] = "<" if plain(file)["little_endian"] else ">"
        start = file.tell()
        _TensorUnpickler(file, path, announced).load()
        storages = {}
        for key in plain(file):
            count = int(np.frombuffer(_read_exactly(file, 8, path), f"{order}i8")[0])
            storages[key] = _as_array(_read_exactly(file, count * _itemsize(dtypes[key]), path), dtypes[key], order)
        file.seek(start)
        return _TensorUnpickler(file, path, lambda _, key, *__: storages[key]).load()


def _read_exactly(file: IO[bytes], count: int, path: Path) -> bytes:
    data = file.read(count) if count >= 0 else b""
    if len(data) != count:
        raise _damaged(path)
    return data


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path}: the file is not as long as it says, or holds views that are not read; fetch it again, or load it "
                      "with PyTorch and save it anew.")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except ValueError as error:
        raise ValueError(f"{path}: a zip file, but neither of torch.save nor of numpy.savez with plain arrays; write it with "
                         "one of the two.") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if size > len(content) - 8 or content[8:9] != b"{":
        raise ValueError(f"{path}: neither a file of torch.save or numpy.savez nor safetensors; fetch it again, or save the "
                         "weights in one of these formats.")
    header = json.loads(content[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SAFETENSORS:
            raise ValueError(f"{path}: {name} is {entry['dtype']}; {', '.join(_SAFETENSORS)} are read.")
        start, stop = entry["data_offsets"]
        data = content[8 + size + start:8 + size + stop]
        tensors[name] = _as_array(data, _SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return tensors
