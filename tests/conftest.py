"""Where shared fixtures of the whole suite live: real data and parity files, found by option or skipped with a reason."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "parity"), str(ROOT)]

# Several CPU devices, so that data parallelism is tested everywhere; must be set before jax starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-dir", default=os.environ.get("JAXCELL_PARITY_DIR", "../shared/parity"),
                     help="recorded outputs of the authors' code")
    parser.addoption("--data-dir", default=os.environ.get("JAXCELL_DATA_DIR", "../shared/data"),
                     help="real microscopy images with labels")


def resolve(config: pytest.Config, option: str) -> Path:
    return (ROOT / config.getoption(option)).resolve()


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    path = resolve(request.config, "--data-dir")
    if not path.is_dir():
        pytest.skip(f"no real images at {path}; name their folder with --data-dir or JAXCELL_DATA_DIR")
    return path


@pytest.fixture(scope="session")
def parity_dir(request: pytest.FixtureRequest) -> Path:
    path = resolve(request.config, "--parity-dir")
    if not path.is_dir():
        pytest.skip(f"no parity files at {path}; name their folder with --parity-dir or JAXCELL_PARITY_DIR")
    return path
