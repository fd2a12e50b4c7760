"""Checkpoints are read without PyTorch, and nothing in them is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from jaxcell.pretrained.torch import read_checkpoint

STORAGES = {"float32": "FloatStorage", "int64": "LongStorage", "float16": "HalfStorage", "bool": "BoolStorage"}


class Storage:
    def __init__(self, kind: str, key: str, data: bytes, count: int) -> None:
        self.kind, self.key, self.data, self.count = kind, key, data, count


class Tensor:
    """Pickles as torch's tensors do."""

    def __init__(self, storage: Storage, offset: int, shape: tuple, strides: tuple) -> None:
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Parameter(Tensor):
    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_parameter, (Tensor(*self.arguments[:4]), True, OrderedDict())


def tensor(array: np.ndarray, key: str, kind: str | None = None) -> Tensor:
    storage = Storage(kind or STORAGES[str(array.dtype)], key, array.tobytes(), array.size)
    return Tensor(storage, 0, array.shape, tuple(step // array.itemsize for step in array.strides))


@pytest.fixture
def torch_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch.save's file format, written with a stand-in for the module that the pickle names."""
    fake, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in [*STORAGES.values(), "BFloat16Storage"]:
        setattr(fake, name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(utils, name, function)
    fake._utils = utils
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def save(content: object, byteorder: str = "little", *, legacy: bool = False) -> Path:
        storages: dict[str, Storage] = {}

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj):
                if not isinstance(obj, Storage):
                    return None
                storages[obj.key] = obj
                return ("storage", getattr(fake, obj.kind), obj.key, "cpu", obj.count) + ((None,) if legacy else ())

        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump(content)
        path = tmp_path / "checkpoint.pt"
        if legacy:
            facts = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": byteorder == "little"})
            keys = sorted(storages)
            counts = [storages[key].count.to_bytes(8, byteorder) + storages[key].data for key in keys]
            head = b"".join(pickle.dumps(fact, 2) for fact in facts)
            path.write_bytes(b"".join([head, buffer.getvalue(), pickle.dumps(keys, 2), *counts]))
            return path
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", buffer.getvalue())
            archive.writestr("archive/byteorder", byteorder)
            for storage in storages.values():
                archive.writestr(f"archive/data/{storage.key}", storage.data)
        return path

    return save


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_every_kind(torch_save, legacy):
    weights = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    shared = Storage("FloatStorage", "9", weights.tobytes(), 24)
    content = OrderedDict(
        whole=tensor(weights, "0"), transposed=Tensor(shared, 0, (4, 3, 2), (1, 4, 12)), part=Tensor(shared, 12, (3,), (4,)),
        parameter=Parameter(shared, 0, (24,), (1,)), counter=tensor(np.asarray(7, np.int64), "1"),
        half=tensor(np.asarray([0.5, 1.5], np.float16), "2"), flags=tensor(np.asarray([True, False]), "3"),
        brain=Tensor(Storage("BFloat16Storage", "4", np.asarray([0x3FC0, 0xC000], np.uint16).tobytes(), 2), 0, (2,), (1,)),
        empty=Tensor(Storage("FloatStorage", "5", b"", 0), 0, (0, 4), (4, 1)))
    content._metadata = OrderedDict([("", {"version": 1})])     # what Module.state_dict() attaches
    arrays = read_checkpoint(torch_save(content, legacy=legacy))
    assert list(arrays) == list(content)
    np.testing.assert_array_equal(arrays["whole"], weights)
    np.testing.assert_array_equal(arrays["transposed"], weights.transpose(2, 1, 0))
    np.testing.assert_array_equal(arrays["part"], weights[1, :, 0])
    np.testing.assert_array_equal(arrays["parameter"], weights.ravel())
    assert arrays["counter"].shape == () and arrays["counter"] == 7
    np.testing.assert_array_equal(arrays["brain"], np.asarray([1.5, -2.0], np.float32))
    assert arrays["half"].dtype == np.float16 and arrays["flags"].dtype == bool and arrays["empty"].shape == (0, 4)


@pytest.mark.parametrize("legacy", [False, True])
def test_big_endian_files(torch_save, legacy):
    array = np.asarray([1.0, 2.5], ">f4")
    content = {"a": Tensor(Storage("FloatStorage", "0", array.tobytes(), 2), 0, (2,), (1,))}
    path = torch_save(content, byteorder="big", legacy=legacy)
    np.testing.assert_array_equal(read_checkpoint(path)["a"], np.asarray([1.0, 2.5], np.float32))


@pytest.mark.parametrize("wrap", [lambda s: {"epoch": 3, "state_dict": s, "lr": 0.1}, lambda s: {"model": {"state_dict": s}},
                                  lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_containers_and_prefixes(torch_save, wrap):
    arrays = read_checkpoint(torch_save(wrap({"conv.weight": tensor(np.ones((2, 2), np.float32), "0")})))
    assert list(arrays) == ["conv.weight"]


def test_a_truncated_file_of_old_pytorch_is_refused(torch_save):
    path = torch_save({"a": tensor(np.ones(8, np.float32), "0")}, legacy=True)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not as long as it says"):
        read_checkpoint(path)


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_anything_else_is_refused_by_name_and_not_run(torch_save, tmp_path, legacy):
    path = torch_save({"a": Attack(tmp_path / "owned")}, legacy=legacy)
    with pytest.raises(ValueError, match=r"asks for \w+\.mkdir; only tensors"):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(("offset", "shape", "strides"), [
    (0, (5,), (1,)), (2, (2, 2), (2, 1)), (-1, (1,), (1,)), (3, (2,), (-1,))])
def test_views_outside_their_storage_are_refused(torch_save, offset, shape, strides):
    storage = Storage("FloatStorage", "0", np.zeros(4, np.float32).tobytes(), 4)
    with pytest.raises(ValueError, match="outside its storage"):
        read_checkpoint(torch_save({"a": Tensor(storage, offset, shape, strides)}))


def test_content_without_tensors_is_refused(torch_save):
    with pytest.raises(ValueError, match=r"not tensors: \['epoch'\]"):
        read_checkpoint(torch_save({"epoch": 3}))
    with pytest.raises(ValueError, match=r"not tensors: \['list'\]"):
        read_checkpoint(torch_save([1, 2]))


def test_safetensors(tmp_path):
    values = np.arange(6, dtype=np.float32)
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
                         "b": {"dtype": "BF16", "shape": [1], "data_offsets": [24, 26]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes() + np.uint16(0x3FC0).tobytes())
    arrays = read_checkpoint(path)
    np.testing.assert_array_equal(arrays["a"], values.reshape(2, 3))
    assert arrays["b"] == 1.5


def test_npz(tmp_path):
    np.savez(tmp_path / "model.npz", **{"a.weight": np.eye(2)})
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "model.npz")["a.weight"], np.eye(2))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="neither a file of torch.save"):
        read_checkpoint(tmp_path / "old.pth")
    np.savez(tmp_path / "objects.npz", a=np.asarray([object()]))
    with pytest.raises(ValueError, match="plain arrays"):
        read_checkpoint(tmp_path / "objects.npz")
