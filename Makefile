# make reproduce   set up, run the five notebooks on a profile, write results/$(PROFILE)/
#                  LAUNCH="accelerate launch --num_processes 8": each run on several GPUs; JOBS=4: processes side by side
# make test        set up, lint, test
# make setup       only the environment in .venv
# make smoke       every stage on a tiny random model, minutes
# make verify      make the published tables again from their rows and check every file
# make docs        fill the numbers of README.md and docs/ from what is committed
# make audit       look the locked packages up in a database of known vulnerabilities, where it can be reached
# make bench       time and memory of the trainer against named peers, into benchmarks/
# make lab         JupyterLab on a scratch copy of the notebooks, in lab/
# make clean       remove the environment and what tools left behind; results stay

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := reproduce

export OMP_WAIT_POLICY = PASSIVE

PROFILE ?= cpu
PYTHON ?= python3
# Without an NVIDIA GPU, torch is taken from PyTorch's own index of CPU builds, so that no CUDA package is downloaded.
# Where that index does not answer within 3 seconds, or with TORCH_INDEX= (empty), pip's usual sources are used:
# there the Linux build brings CUDA packages of several GB, unless a mirror or PIP_FIND_LINKS offers a CPU build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.setup-done

.PHONY: reproduce setup test smoke verify docs audit bench lab clean

reproduce: setup
	$(RUN) -m enigma run $(PROFILE) $(if $(LAUNCH),--launch "$(LAUNCH)") $(if $(JOBS),--jobs $(JOBS))

setup: $(STAMP)

# First all but torch, each file held against its hash; then torch finds what it needs, but for the packages of a CUDA build.
$(STAMP): requirements.lock requirements-torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) --version) is too old; expected Python 3.11 or newer; use make PYTHON=/path/to/python3.12" >&2; exit 2; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	@if [[ -n "$(TORCH_INDEX)" ]] && ! command -v nvidia-smi >/dev/null && $(RUN) -c \
	  'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=3)' "$(TORCH_INDEX)/torch/" 2>/dev/null; then \
	  echo "torch from $(TORCH_INDEX)"; \
	  $(RUN) -m pip install --quiet --no-deps --index-url "$(TORCH_INDEX)" -r requirements-torch.txt; \
	else \
	  echo "torch from pip's usual sources"; \
	  $(RUN) -m pip install --quiet -r requirements-torch.txt; \
	fi
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	touch $@

test: setup
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check --quiet .
	$(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

smoke: setup
	$(RUN) -m enigma run smoke

verify: setup
	$(RUN) -m enigma verify $(PROFILE)

docs: setup
	$(RUN) scripts/readme.py
	$(RUN) docs/loop.py

# In an environment of its own, since it must not change what is locked.
audit:
	@$(PYTHON) -c 'import socket; socket.create_connection(("api.osv.dev", 443), 3)' 2>/dev/null || \
	  { echo "not audited: no connection to the database of vulnerabilities (api.osv.dev)"; exit 0; }; \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder"; \
	"$$folder/bin/pip" install --quiet pip-audit; \
	grep -ho '^[^ #]*==[^ ]*' requirements.lock requirements-torch.txt >"$$folder/pins"; \
	"$$folder/bin/pip-audit" --vulnerability-service osv --timeout 10 --progress-spinner off --disable-pip --no-deps -r "$$folder/pins"

bench: setup
	$(RUN) -m benchmarks

lab: setup
	mkdir -p lab
	for source in notebooks/*.py; do \
	  test -e lab/$$(basename $$source .py).ipynb || $(RUN) -m jupytext --quiet --to ipynb --output lab/$$(basename $$source .py).ipynb $$source; \
	done
	$(RUN) -m jupyter lab lab

clean:
	rm -rf $(VENV) lab build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
