"""Every recorded output of the authors' code, recomputed with jaxcell's public functions. One test per file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapters import ADAPTERS, LATER, SYSTEMS, TOLERANCES
from conftest import resolve
from loader import Case, load_case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = resolve(metafunc.config, "--parity-dir")
    files = sorted(p for s in SYSTEMS for p in (folder / s).glob("*.npz"))
    if files:
        metafunc.parametrize("path", files, ids=[f"{p.parent.name}/{p.stem}" for p in files])
    else:
        skip = pytest.mark.skip(reason=f"no parity files at {folder}; name their folder with --parity-dir or JAXCELL_PARITY_DIR")
        metafunc.parametrize("path", [pytest.param(folder, marks=skip, id="absent")])


def compare(case: Case, name: str, value: np.ndarray, mask: np.ndarray | None) -> None:
    expected = case.outputs[name]
    value = case.subsample(name, np.asarray(value))
    assert value.shape == expected.shape, f"{name}: shape {value.shape}, recorded {expected.shape}"
    tolerance = TOLERANCES.get(f"{case.meta_name}:{name}", TOLERANCES.get(case.meta_name, 1e-4))
    if expected.dtype.kind in "iub" and tolerance == 1e-4:
        wrong = value.astype(np.int64) != expected.astype(np.int64)
        wrong &= True if mask is None else case.subsample(name, mask)
        assert not wrong.any(), f"{name}: {wrong.sum()} of {wrong.size} integers differ"
        return
    error = np.abs(value.astype(np.float64) - expected.astype(np.float64))
    if mask is not None:
        error = np.where(case.subsample(name, mask), error, 0.0)
    scale = max(float(np.abs(expected.astype(np.float64)).max(initial=0.0)), 1e-30)
    absolute = expected.dtype.kind in "iub"     # a tolerance for integers is a count of grey levels
    worst = float(error.max(initial=0.0)) / (1.0 if absolute else scale)
    assert worst <= tolerance, f"{name}: differs by {worst:.3g} of the largest magnitude, allowed {tolerance:g}"


def test_parity(path: Path) -> None:
    case = load_case(path)
    if case.meta_name in LATER:
        pytest.skip(LATER[case.meta_name])
    assert case.meta_name in ADAPTERS, f"{path} has no adapter: add one to tests/parity/adapters.py"
    results = ADAPTERS[case.meta_name](case)
    compared = 0
    for name in case.outputs:
        if name.endswith("rounding_margin"):     # the reference's own distance to a rounding flip: a mask, not a result
            continue
        assert name in results, f"{case.name}: the adapter does not compute {name}"
        value, mask = results[name] if isinstance(results[name], tuple) else (results[name], None)
        compare(case, name, value, mask)
        compared += 1
    assert compared, f"{case.name} records nothing"
