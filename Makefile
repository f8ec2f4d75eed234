# Every target works from a clean clone and sets up what it needs. `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
# The FAISS and ONNX Runtime builds: gpu where a driver answers, else cpu. Force it: make setup EXTRA=cpu
EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRA)
DOCS_READY := $(VENV)/.docs-ready
FUZZ_READY := $(VENV)/.fuzz-ready
# PyTorch's own index of its builds for the CPU, which are small. With EXTRA=cpu, set-up takes the build of
# locks/torch.txt from there; where it cannot be reached, the build for CUDA follows.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# The interpreters of make test-all.
PYTHONS ?= $(shell for version in 3.11 3.12 3.13; do \
	for python in python$$version $$(ls -d ~/.pyenv/versions/$$version.*/bin/python 2>/dev/null | sort -rV); do \
		if $$python -c 'import ensurepip' 2>/dev/null; then echo $$python; break; fi; done; done)
# How long make fuzz runs. An hour before a release; CI runs half a minute.
FUZZ_SECONDS ?= 3600

TORCHREC_READY := build/torchrec/.ready
AUDIT_READY := $(VENV)/.audit-ready
# Only files whose hashes are in locks/ are installed; packages are built by the setuptools of locks/pip.txt.
INSTALL := $(BIN)/pip install --quiet --no-deps --no-build-isolation
LOCKED := $(INSTALL) --require-hashes --requirement

.PHONY: help audit sbom lock setup torchrec demo bench docs gpu-check harden fuzz soak test test-all first-hour check format protos lint types imports stubs clean peers

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: EXTRA=cpu|gpu (now: $(EXTRA)), PYTHON=python3.11 …, VENV=$(VENV), FUZZ_SECONDS=$(FUZZ_SECONDS)"

setup: $(READY) ## Create .venv with everything installed (cpu or gpu builds, selected automatically)

$(READY): pyproject.toml locks/pip.txt locks/$(EXTRA).txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one: make setup PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@if ls $(VENV)/.ready-* >/dev/null 2>&1 && ! test -e $@; then \
		echo "switching to the $(EXTRA) builds"; \
		$(BIN)/pip uninstall --quiet --yes faiss-cpu faiss-gpu onnxruntime onnxruntime-gpu 2>/dev/null; fi
	$(LOCKED) locks/pip.txt
	@# A folder of the machine (find-links) may have PyTorch's build for the CPU, which is small and needs no CUDA.
	@$(LOCKED) locks/torch.txt --no-index 2>/dev/null || true
	@if [ $(EXTRA) = cpu ] && ! $(BIN)/pip show --quiet torch 2>/dev/null; then \
		$(LOCKED) locks/torch.txt --index-url $(TORCH_INDEX) --retries 0 --timeout 30 2>/dev/null || \
		echo "no build of PyTorch for the CPU in TORCH_INDEX=$(TORCH_INDEX): the one for CUDA follows, 6 GB"; fi
	$(LOCKED) locks/$(EXTRA).txt
	@if { $(BIN)/pip check || true; } | grep -qE '^torch .* requires (nvidia|cuda|triton)'; then \
		echo "PyTorch's build for CUDA needs NVIDIA's libraries"; $(LOCKED) locks/cuda.txt; fi
	$(INSTALL) --editable .
	$(BIN)/pip check
	@rm -f $(VENV)/.ready-*
	@touch $@

torchrec: $(TORCHREC_READY) ## Install TorchRec for CPUs into build/torchrec, for the tests of several ranks

$(TORCHREC_READY): $(READY) locks/torchrec.txt
	$(LOCKED) locks/torchrec.txt --target build/torchrec --upgrade
	@touch $@

demo: $(READY) ## All steps on MovieLens-100k, from the download to candidates over gRPC; minutes
	$(BIN)/re4 demo

bench: $(READY) ## Measure the demo's server under load; a minute
	@test -e demo/bundles/CURRENT || $(BIN)/re4 demo
	$(BIN)/re4 bench serve --bundles demo/bundles --data demo/ml-100k --rate 100 --duration-s 5 --out demo/bench

docs: $(DOCS_READY) ## Build the documentation site into build/site; a broken link or reference fails
	rm -rf build/docs build/site
	mkdir -p build/docs
	git ls-files -z --cached --others --exclude-standard '*.md' '*.png' deploy protos/v1/retrieval.proto | xargs -0 cp --parents -t build/docs
	$(BIN)/zensical build --clean --strict --config-file mkdocs.yml

$(DOCS_READY): $(READY) locks/docs.txt
	$(LOCKED) locks/docs.txt
	@touch $@

peers: ## Install the peers of re4 bench index and re4 bench peers; lists those that are not available
	@benchmarks/peers/baselines/install.sh $(PYTHON)

harden: $(READY) ## Robustness tests at full size: swaps, damage, kills, a fuzzer; minutes
	$(BIN)/pytest tests/hardening --hardening long --hardening-report hardening.json

fuzz: $(FUZZ_READY) ## Fuzz every parser, an hour by default: make fuzz FUZZ_SECONDS=30
	$(BIN)/python tests/fuzzing/fuzz.py --seconds $(FUZZ_SECONDS)

$(FUZZ_READY): $(READY) locks/fuzz.txt
	$(LOCKED) locks/fuzz.txt
	@touch $@

soak: $(READY) ## Load the demo's bundle at 70 % for half an hour: latency and memory by minute
	@test -e demo/bundles/CURRENT || $(BIN)/re4 demo
	$(BIN)/re4 bench soak --bundles demo/bundles --data demo/ml-100k --out demo/bench

gpu-check: $(READY) ## Tests and a short benchmark on a GPU; reports it where there is none
	$(BIN)/python -m re4.benchmarks.gpu_check

# These tests measure times, or count failed calls under load, so they run alone.
ALONE := $(addprefix tests/benchmarks/,common load_generator serve/test_measured_delays.py) \
	$(addprefix tests/hardening/test_,network_attacks.py stops_under_load.py swaps_under_load.py)

audit: $(AUDIT_READY) ## Look for known vulnerabilities of everything that set-up installs (pip-audit)
	$(BIN)/python tools/audit.py

sbom: $(AUDIT_READY) ## Write the software bill of materials, build/sbom-cpu.cdx.json and -gpu (CycloneDX)
	mkdir -p build
	for extra in cpu gpu; do $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/sbom-$$extra.cdx.json locks/$$extra.txt; done

lock: $(AUDIT_READY) ## Write locks/ after a change of pyproject.toml or constraints.txt (uv)
	$(BIN)/python tools/lock.py

$(AUDIT_READY): $(READY) locks/audit.txt
	$(LOCKED) locks/audit.txt
	@touch $@

test: $(READY) ## Run the whole test suite
	@# Files keep their order, in which long ones come first (tests/conftest.py). One process more than cores works
	@# while others wait for a server.
	$(BIN)/pytest --numprocesses $$(n=$$($(BIN)/python -c 'import os; print(os.cpu_count())'); echo $$((n < 8 ? n + 1 : 8))) --dist loadfile --no-loadscope-reorder $(ALONE:%=--ignore %)
	$(BIN)/pytest $(ALONE)

test-all: ## Run the suite on each Python 3.11 to 3.13 that is found: PYTHONS="python3.11 …"
	@failed=; for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "Python $$version: $$python"; \
		$(MAKE) test PYTHON=$$python VENV=build/python-$$version || failed="$$failed $$version"; \
	done; if [ -n "$$failed" ]; then echo "failed on Python$$failed" >&2; exit 1; fi

first-hour: $(READY) ## Go a newcomer's first hour by a wheel in a new environment; writes docs/first-hour.md
	rm -rf build/first-hour
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/first-hour .
	$(PYTHON) tools/first_hour.py --wheel build/first-hour/*.whl --work build/first-hour/shop --page docs/first-hour.md

check: lint types imports stubs ## Check format, lint, types, import contracts and gRPC stubs

lint: $(READY) ## Check formatting and lint (ruff)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY) ## Check types (mypy, strict)
	$(BIN)/mypy

imports: $(READY) ## Check the import contracts (import-linter); print the rooms and their arrows
	$(BIN)/lint-imports
	$(BIN)/python tools/rooms.py

stubs: $(READY) ## Check that the generated gRPC stubs match protos/
	$(BIN)/python protos/generate.py --check

protos: $(READY) ## Generate the gRPC stubs from protos/
	$(BIN)/python protos/generate.py

format: $(READY) ## Format the code and apply safe lint fixes
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean: ## Remove the environment, caches and the demo's files
	rm -rf $(VENV) benchmarks/peers/baselines/.venv* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build demo *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
