"""The rules of the architecture, executed: imports run one way, workers import no jax, config ends at the constructor."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "jaxcell").rglob("*.py"))

# Each package may import those of lower rank; packages of one rank are siblings and do not import each other.
RANK = {"types": 0, "geometry": 1, "system": 1,
        "data": 2, "targets": 2, "models": 2, "losses": 2, "matching": 2, "decode": 2, "metrics": 2, "viz": 3,
        "pretrained": 3, "systems": 4, "training": 5, "inference": 5, "export": 5,
        "configuration": 6, "start": 7, "translate": 8, "evaluate": 9, "train": 10,
        "data_commands": 10, "synthesize": 10, "doctor": 10, "cli": 11}
# Reading label files needs geometry only; the three below are edges between packages of one rank that carry no cycle.
SIBLINGS_ALLOWED = {("inference", "export")}
NO_JAX = {"types", "geometry", "data", "targets", "decode", "metrics", "viz", "export"}
READS_CONFIG = {"train", "evaluate", "translate", "synthesize", "start", "configuration", "systems", "training/optimizer"}


def package(path: Path) -> str:
    return path.relative_to(ROOT / "jaxcell").with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in the file, dotted."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "jaxcell" else {node.module}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    here = package(path)
    if here == "__init__":
        return
    for name in imports(path):
        if not name.startswith("jaxcell.") or name.split(".")[1] in (here, "__version__"):
            continue
        there = name.split(".")[1]
        assert RANK[there] < RANK[here] or (here, there) in SIBLINGS_ALLOWED, \
            f"{here} (rank {RANK[here]}) imports {there} (rank {RANK[there]}): imports run from low rank to high"


@pytest.mark.parametrize("path", [p for p in FILES if package(p) in NO_JAX], ids=lambda p: str(p.relative_to(ROOT)))
def test_code_of_data_workers_imports_no_jax(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"jax", "jaxlib", "flax", "optax", "chex", "orbax"}, f"{path.name} runs in data workers"


def test_worker_code_does_not_load_jax_at_run_time():
    """What data workers import must not pull jax in through anything it imports.

    data.pipeline is left out: it starts the workers and needs grain, whose `import grain` itself loads jax.
    """
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES
               if package(p) in {"geometry", "targets", "decode", "metrics", "data"}
               and p.name not in ("__init__.py", "pipeline.py")]
    code = f"import sys\nfor m in {modules!r}: __import__(m)\nprint('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_config_ends_at_the_constructor(path):
    where = str(path.relative_to(ROOT / "jaxcell").with_suffix(""))
    reads = package(path) in READS_CONFIG or where in READS_CONFIG
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            assert not (isinstance(node.func.value, ast.Name) and node.func.value.id == "config"), \
                f"{path.name}:{node.lineno} config.get is silent about a wrong key"
        if isinstance(node, ast.arg) and node.arg == "config":
            assert reads, f"{path.name}:{node.lineno} takes a config; give it plain keyword arguments"
        attribute = isinstance(node, ast.Attribute) and node.attr == "import_module"
        if attribute or isinstance(node, ast.Name) and node.id == "getattr":
            raise AssertionError(f"{path.name}:{node.lineno} looks things up by name; use a literal dict")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_machinery_knows_no_concrete_system(path):
    if package(path) in {"training", "inference", "export", "metrics", "data", "losses", "models"}:
        assert not any(name.startswith("jaxcell.systems") for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_are_documented_and_pass_no_kwargs_through(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, f"{path.name}:{node.lineno} {node.name}(**{node.args.kwarg.arg}) hides wrong options"


def test_no_module_is_a_drawer():
    assert not [p for p in FILES if p.stem in {"utils", "util", "helpers", "common", "misc"}]
