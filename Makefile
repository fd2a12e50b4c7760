# make setup | demo | test | bench: a fresh machine needs Python 3.11-3.13 and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint bench clean
setup: .venv/.ready

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), f"Python {sys.version.split()[0]} found; jaxcell needs 3.11-3.13: make setup PYTHON=python3.11"'
	@echo "== setup: making .venv and installing jaxcell with what its tests need"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	@touch .venv/.ready

demo: setup
	@rm -rf runs/demo
	@echo "== demo: train on synthetic cells (config: configs/contour_proposal.py), workdir runs/demo"
	$(BIN)/python train.py --config configs/contour_proposal.py --workdir runs/demo
	@echo "== demo: evaluate on synthetic images that training never saw"
	$(BIN)/python evaluate.py --workdir runs/demo --out runs/demo/evaluation
	@echo "== demo: look at runs/demo/curves.png and runs/demo/evaluation/"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# The networks of most tests are small and compiled once, so that compiling fast is worth more than running fast; the authors'
# full-size networks run long, and are compiled as users compile theirs.
test: lint
	XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15 --ignore tests/parity
	$(BIN)/python -m pytest tests/parity -n 2 --durations 15

# PyTorch is the rival of the benchmarks, and nothing else needs it: the CPU build, without the CUDA packages.
.venv/.torch: .venv/.ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python torch==2.13.0 --torch-backend cpu || $(BIN)/uv pip install --quiet --python $(BIN)/python torch==2.13.0
	@touch .venv/.torch

bench: .venv/.torch
	@echo "== bench: jaxcell beside PyTorch on this CPU, at most 15 minutes on 2 quiet cores: benchmarks/results/cpu.md"
	$(BIN)/python -m benchmarks.battery --device cpu

clean:
	rm -rf runs/demo .pytest_cache .ruff_cache .mypy_cache build *.egg-info
