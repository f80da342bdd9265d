# `make run` and `make test` need only Python 3.11 to 3.14 and a package index.

PYTHON ?= python3
VENV ?= .venv
# An exact version, since pip then takes a CPU build where one is offered; a range may install CUDA packages.
# On a GPU node: make run TORCH='torch>=2.11'
TORCH ?= torch==2.13.0
# The tested version of every other package. To install the newest allowed ones: make run CONSTRAINTS=/dev/null
CONSTRAINTS ?= constraints.txt
PIP = $(VENV)/bin/pip install -qq --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: run app test test-system lint constraints bench soak operate ui clean

run: $(VENV)/demo.installed
	@$(VENV)/bin/lexloom word2vec --runner ray

# Serves a web page to try the models in the store, until Ctrl-C.
app: $(VENV)/app.installed
	@$(VENV)/bin/lexloom app

test: $(VENV)/dev.installed
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

# System tests: with a browser, Postgres, Redis and Ray clusters; `.ci/run` installs the requirements.
test-system: $(VENV)/dev.installed
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile tests/system

lint: $(VENV)/dev.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Updates the tested versions in constraints.txt, for all supported Pythons and systems. torch and the packages of
# CUDA are omitted, because TORCH selects them.
constraints: $(VENV)/dev.installed
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-annotate \
	  --no-header --no-emit-package torch --no-emit-package triton pyproject.toml \
	  | grep -Ev '^(cuda|nvidia)-' > constraints.new
	mv constraints.new constraints.txt

# Measures the figures of the README; DATA is a folder of Parquet files with a `text` column. (The parts `loss` of
# benchmarks/transformer.py and benchmarks/sentiment.py need other texts, which they name.)
bench: $(VENV)/dev.installed
	@test -n "$(DATA)" || { echo "say where the corpus is: make bench DATA=folder-of-parquet-files"; exit 2; }
	$(VENV)/bin/python benchmarks/text.py --data $(DATA)
	$(VENV)/bin/python benchmarks/pairs.py --data $(DATA)
	$(VENV)/bin/python benchmarks/sgns_cpu.py
	$(VENV)/bin/python benchmarks/word2vec.py --data $(DATA)
	$(VENV)/bin/python benchmarks/word2vec_scaling.py --check
	$(VENV)/bin/python benchmarks/large_vocabulary.py
	$(VENV)/bin/python benchmarks/flow.py --data $(DATA)
	$(VENV)/bin/python benchmarks/sync.py
	$(VENV)/bin/python benchmarks/windows.py --data $(DATA)
	$(VENV)/bin/python benchmarks/window_lm.py
	$(VENV)/bin/python benchmarks/transformer.py speed
	$(VENV)/bin/python benchmarks/neighbours.py

# Fault injection: kills workers and drivers, and cancels runs, ninety times in total. Takes an hour or two.
soak: $(VENV)/dev.installed
	$(VENV)/bin/python -m tests.system.harness.soak

# Measures the overhead of Prefect and Ray, and kills the server and hosts. Takes half an hour or more.
operate: $(VENV)/dev.installed
	$(VENV)/bin/python -m tests.system.harness.operate
	$(VENV)/bin/python -m tests.system.harness.cluster
	$(VENV)/bin/python benchmarks/overhead.py

# Serves Prefect's UI to start, schedule and watch runs on this machine, until Ctrl-C.
ui: $(VENV)/demo.installed
	@$(VENV)/bin/lexloom ui

clean:
	rm -rf $(VENV) artifacts build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing Lexloom and its packages into $(VENV) (a minute or two)"
	@$(PIP) '$(TORCH)' && $(PIP) -e '.[demo]' && touch $@

$(VENV)/app.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing Lexloom, its packages and the web page's into $(VENV) (a minute or two)"
	@$(PIP) '$(TORCH)' && $(PIP) -e '.[demo,sentiment,app]' && touch $@ $(VENV)/demo.installed

$(VENV)/dev.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing Lexloom, its packages and its tests' into $(VENV) (a minute or two)"
	@$(PIP) '$(TORCH)' && $(PIP) -e '.[demo,bench,dev]' && touch $@ $(VENV)/demo.installed
