# `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench browser testbed lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## install everything into .venv

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: setup  ## the whole pipeline on the small model that ships with cmma (under 10 minutes on 2 cores)
	$(BIN)/cmma run experiment=demo
	@echo
	@$(BIN)/cmma ls train-sae
	@echo "Open $(CURDIR)/outputs/report/index.html in a browser."

test: setup browser  ## the test suite
	env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup  ## formatting and types
	$(BIN)/ruff check cmma tests scripts benchmarks
	$(BIN)/mypy

bench: setup  ## speed, as interleaved ratios to a bound or a peer in the same process
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

browser:  ## Chromium for the tests of the report (Debian and Ubuntu, as root; without it they are skipped)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "no Chromium here: the tests of the report page will be skipped (install the package chromium)"

TABLES := table1 table2 hallucination consistency interpretability phases tracing cmig ablation baselines
SCALE  ?= toy
.PHONY: tables reproduce $(TABLES)
tables: setup  ## every table of the paper, making what is missing (make tables SCALE=paper WORDS="dataset.path=…")
	$(BIN)/cmma tables scale=$(SCALE) $(WORDS)

$(TABLES): setup
	$(BIN)/cmma tables name=$@ scale=$(SCALE) $(WORDS)

reproduce: demo  ## the demo, all tables and the site over them, from nothing (SCALE and WORDS as for tables)
	@$(MAKE) --no-print-directory tables
	@echo "Open $(CURDIR)/outputs/tables/index.html in a browser."

MODEL ?= toy_llava
testbed: setup  ## train a small model anew (make testbed MODEL=toy_clip); killed, it goes on where it was
	$(BIN)/python scripts/train_testbed.py $(MODEL) --out $(or $(OUT),outputs/testbed/$(MODEL)) --threads 1

lock:  ## pin every dependency with hashes (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock

clean:  ## remove caches (results in outputs/ and the environment stay)
	rm -rf dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
