# Everything starts here: `make demo`, `make shards`, `make test`. `make help` lists the targets.
SHELL := /bin/bash
PY := .venv/bin/python
READY := .venv/.ready
CONFIG ?=
ARGS ?=
# Two processes on a 2-core machine; the tests' own processes take one thread each.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --timeout=300

.PHONY: help setup demo shards check format test test-fast test-slow soak test-cluster test-gpu bench-gpu lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

$(READY): requirements.lock pyproject.toml tools/setup.sh
	@bash tools/setup.sh

setup: $(READY)  ## make .venv with the locked packages, and ffmpeg

demo: $(READY)  ## raw videos -> shards -> pre-training -> resume -> retrieval on a sample corpus
	@$(PY) -m launch.demo $(ARGS)

shards: $(READY)  ## write tar shards: of the sample corpus, or CONFIG=configs/preprocess/x.yaml ARGS="key=value ..."
ifeq ($(CONFIG),)
	@$(PY) -m preprocess.sample
	@$(PY) -m preprocess.run configs/preprocess/sample_train.yaml $(ARGS)
	@$(PY) -m preprocess.run configs/preprocess/sample_heldout.yaml $(ARGS)
else
	@$(PY) -m preprocess.run $(CONFIG) $(ARGS)
endif

check: $(READY)  ## format, lint, types, import contract, the tree in ARCHITECTURE.md
	@$(PY) tools/architecture_tree.py --check
	@$(PY) -m ruff format --check --quiet . || { echo "run 'make format'"; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-cache | tail -n 4

format: $(READY)  ## format the code and sort imports
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .
	@$(PY) tools/architecture_tree.py --write

test: $(READY)  ## the test suite: about 11 minutes on 2 cores
	$(PYTEST) -n $(JOBS) -m "not slow and not soak and not cluster and not gpu" $(ARGS)

test-fast: $(READY)  ## the inner loop: what takes a moment
	$(PYTEST) -n $(JOBS) -m "not heavy and not slow and not soak and not cluster and not gpu" $(ARGS)

test-slow: $(READY)  ## the whole matrices: kill points, ZeRO stages, damaged checkpoints
	$(PYTEST) -n $(JOBS) -m slow $(ARGS)

soak: $(READY)  ## damage to every kind of foreign bytes, for MINUTES=5; SEED=1000 is where the search starts
	SOAK_MINUTES=$(or $(MINUTES),5) SOAK_SEED=$(or $(SEED),1000) $(PYTEST) -n $(JOBS) -m soak $(ARGS)

test-cluster: $(READY)  ## on a real SLURM of 8 nodes, started on this machine; needs root, installs SLURM
	$(PYTEST) -n $(JOBS) --dist worksteal -m cluster $(or $(ARGS),tests/cluster)

test-gpu: $(READY)  ## on a GPU: fast against eager, ZeRO 0-3, fp16, resume; at most 4 minutes on one
	$(PYTEST) -m gpu $(ARGS)

bench-gpu: $(READY)  ## what a step costs on this machine's GPU: at most 6 minutes, ARGS="--out results.json"
	$(PY) -m benchmarks.gpu $(ARGS)

lock: $(READY)  ## renew requirements.lock from pyproject.toml
	.venv/bin/uv pip compile --quiet --upgrade --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--no-header --extra dev pyproject.toml -o requirements.lock

clean:  ## remove the sample corpus and what the demo and the tests made of it; keeps .venv and all other data and runs
	rm -rf data/sample data/shards/sample_{train,heldout} runs/demo .pytest_cache .mypy_cache .ruff_cache
