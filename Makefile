# Everything a person or CI does with this repository. Needs python3 (3.11 or newer) and make, nothing else:
# the virtual environment, uv and all packages come from the hashed locks in requirements/.
# Caches live in the user's cache directory, so a fresh clone starts warm.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
# pytest's arguments for each suite, as its own target and `make flake` run it.
TEST_test := -n 2 --dist loadfile
TEST_chaos := tests/chaos
TEST_e2e := -v tests/e2e
PACKAGES := crds/src operator/src trainer-image/src
# Compiled bytecode halves the start of every process; some environments switch it off.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup quickstart test lint verify golden generate lock bench-cli bench-operator bench-trainer gpu testbed chaos chaos-full e2e flake known-suite cluster images clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Make the virtual environment

$(STAMP): requirements/uv.txt requirements/build.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	DS_BUILD_OPS=0 $(BIN)/uv pip sync --quiet --require-hashes --build-constraints requirements/build.txt requirements/dev.txt
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: setup ## Finetune a real small model on this machine and show what changed
	$(BIN)/python -W ignore::FutureWarning docs/examples/quickstart.py

test: setup lint verify testbed ## Everything that must hold: lint, types, unit, golden, contract, integration
	$(BIN)/pytest $(TEST_test)

lint: setup ## Style, types, layers, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES) tests docs/examples
	$(BIN)/lint-imports
	$(BIN)/codespell $(PACKAGES) tests docs README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/pytest -q tests/lint

verify: setup ## Fail if a generated file is not what its source says
	$(BIN)/python -m finetune_api generate --check
	$(BIN)/python -m finetune_cli.reference --check
	$(BIN)/python -m finetune_operator.helm_chart --check

generate: setup ## Write all generated files: CRD, policy, chart copies, reference pages
	$(BIN)/python -m finetune_api generate
	$(BIN)/python -m finetune_cli.reference
	$(BIN)/python -m finetune_operator.helm_chart

golden: setup ## Rewrite the golden plans and masks; read the diff
	GOLDEN=rewrite $(BIN)/pytest -q tests/plan/test_golden.py
	PYTHONPATH=tests $(BIN)/python tests/tokens/golden.py

e2e: setup testbed images ## The whole on a real node: images, chart, pods (as root on Debian; minutes, the first time a quarter of an hour)
	$(BIN)/python tests/testbed/build.py kubelet kube-proxy coredns
	$(BIN)/pytest $(TEST_e2e)

cluster: setup ## Run a cluster with a real node and our chart until Ctrl-C, to try (root on Debian; as e2e)
	@TQDM_DISABLE=1 PYTHONPATH=tests $(BIN)/python -m e2e.try_cluster

chaos: setup testbed ## The operator killed at every write of a job's life, and disturbed in other ways at some (minutes)
	$(BIN)/pytest $(TEST_chaos)

chaos-full: setup testbed ## The same, with every disturbance at every write (the better part of an hour)
	CHAOS=full $(BIN)/pytest $(TEST_chaos)

N ?= 3
SUITE ?= test
known-suite:
	@test -n "$(TEST_$(SUITE))" || { echo "error: SUITE=$(SUITE) is not one of test, chaos, e2e" >&2; exit 2; }

flake: known-suite setup testbed ## Repeat a suite, or one test, on a busy machine: N=3 SUITE=test|chaos|e2e TEST=tests/...::name
	PYTHONPATH=tests $(BIN)/python -m testbed.flake -n $(N) -- $(if $(TEST),"$(TEST)",$(TEST_$(SUITE)))

images: setup ## Build both images from their Dockerfiles, without a container engine
	PYTHONPATH=tests $(BIN)/python -m testbed.images

testbed: setup ## Build the real API server and Training Operator for the tests, into the user's cache
	$(BIN)/python tests/testbed/build.py

bench-operator: setup testbed ## Time 10,000 jobs against a bare kopf handler (15 minutes; JOBS=500, ONLY=comparison for less)
	PYTHONPATH=tests $(BIN)/python -m bench.operator_scale $(if $(JOBS),--jobs $(JOBS)) $(if $(ONLY),--only $(ONLY))

# Not the locks: such machines come with a torch for their driver, and often without a network.
gpu: ## On a machine with a GPU, with the packages of PYTHON: parity, waits, speed, memory (under 10 minutes; ONLY=speed)
	@$(PYTHON) -c 'import torch, transformers, peft, pydantic' || \
	  { echo "error: $(PYTHON) lacks a package of the trainer; run make PYTHON=.venv/bin/python gpu, or install it" >&2; exit 2; }
	PYTHONPATH=tests:$(subst $(eval) ,:,$(PACKAGES))$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m bench.gpu $(if $(ONLY),--only $(ONLY))

bench-trainer: setup ## A real small model on this CPU: what saves cost, what is published, how LoRA learns (30 minutes; ONLY=saves)
	PYTHONPATH=tests $(BIN)/python -W ignore::FutureWarning -m bench.trainer $(if $(ONLY),--only $(ONLY))

bench-cli: setup ## Time --help and validate (median of 10)
	$(BIN)/python tests/bench/cli_start.py

lock: setup ## Resolve the locks in requirements/ anew
	for extra in operator trainer cli; do \
	  $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra $$extra \
	    --custom-compile-command "make lock" pyproject.toml -o requirements/$$extra.txt; done
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	  --extra operator --extra trainer --extra cli --group dev \
	  --custom-compile-command "make lock" pyproject.toml -o requirements/dev.txt
	echo setuptools | $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	  --constraints requirements/dev.txt --custom-compile-command "make lock" - -o requirements/build.txt

clean: ## Remove what make setup made; caches stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
