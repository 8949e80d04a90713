# Everything happens in .venv. Needs Python 3.11 or newer, and make.
#   make run                          meta-train, attack and rank on embedded data: a few minutes
#   make run ARGS="--profile smoke"   the same in seconds; ARGS go to `bench run`
#   make test                         what CI checks
#   make help                         all of it

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= auto
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11 python
FITS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?=
PLUGINS := plugins/__init__.py plugins/learners plugins/attacks plugins/datasets plugins/backbones plugins/trackers
SOURCES := robustbench_meta $(PLUGINS) benchmarks docs examples tests .ci cli.py setup.py
TYPED := $(VENV)/typed
DOCS := $(VENV)/docs
DOCS_TOOLS := mkdocs-material 'mkdocstrings[python]' ruff twine
SITE := build/site
REQUIRED ?=
PINS := constraints.txt
INSTALL := $(BIN)/python -m pip install -qq --constraint $(PINS) --editable
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup run test lint types docs docs-serve docs-tools audit tests format wheel constraints clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*  ## ' Makefile | sed -E 's/^([a-z-]+):.*  ## /  make \1\t/' | expand -t 20

setup: $(VENV)/.dev  ## set up .venv with the tools for development

run: $(VENV)/.run  ## bench run $(ARGS): by default MAML and ADML against FGSM and PGD
	$(BIN)/bench run $(ARGS)

.PHONY: bench
bench: $(VENV)/.bench  ## measure speed against other libraries; ARGS as of `python -m benchmarks --help`
	$(BIN)/python -m benchmarks $(ARGS)

test: lint types docs audit tests  ## everything: lint, types, docs, audit, tests

lint: $(VENV)/.dev $(TYPED)  ## ruff: style and format; import-linter: no import upwards
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	cd $(TYPED) && ../bin/lint-imports --no-logo --no-cache $(CURDIR)/pyproject.toml

.PHONY: $(TYPED)
$(TYPED):
	@# mypy and import-linter know no package-dir: show them the package as it is when installed
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/robustbench_meta/plugins
	@ln -s $(CURDIR)/robustbench_meta/* $(TYPED)/robustbench_meta/
	@ln -s $(addprefix $(CURDIR)/,$(PLUGINS)) $(TYPED)/robustbench_meta/plugins/
	@ln -s $(CURDIR)/cli.py $(CURDIR)/examples $(CURDIR)/benchmarks $(TYPED)/

types: $(VENV)/.dev $(TYPED)  ## mypy, strict
	cd $(TYPED) && ../bin/mypy --config-file $(CURDIR)/pyproject.toml -p robustbench_meta -m cli -p examples -p benchmarks

docs: docs-tools  ## the docs say what the code does, and make a site: build/site/index.html
	$(BIN)/pytest tests/end_to_end/test_docs.py
	@test ! -e $(DOCS)/.done || $(DOCS)/bin/mkdocs --quiet build --strict --site-dir $(SITE)

docs-serve: docs-tools  ## show the docs site while you write
	$(DOCS)/bin/mkdocs serve

docs-tools: $(VENV)/.python
	@# in an environment of their own, as the audit; REQUIRED=1: it is no excuse that they cannot be installed
	@test $(DOCS)/.done -nt constraints-docs.txt || { $(BIN)/python -m venv --clear $(DOCS) && \
	  $(DOCS)/bin/python -m pip install -qq --constraint constraints-docs.txt $(DOCS_TOOLS) && \
	  touch $(DOCS)/.done; } || { rm -rf $(DOCS); test -z "$(REQUIRED)" && \
	  echo "docs: SKIPPED, no site: its tools could not be installed into $(DOCS), as pip says above"; }

audit: $(VENV)/.dev  ## known vulnerabilities among the pins; skipped, with the reason, without network
	@test $(VENV)/audit/.done -nt constraints-audit.txt || { $(BIN)/python -m venv --clear $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip install -qq --constraint constraints-audit.txt pip-audit && \
	  touch $(VENV)/audit/.done; } || rm -rf $(VENV)/audit
	$(BIN)/python .ci/audit.py --pip-audit $(VENV)/audit/bin/pip-audit constraints*.txt

tests: $(VENV)/.dev  ## pytest, on JOBS processes (default: all cores)
	$(BIN)/pytest -n $(JOBS) --dist worksteal --ignore tests/end_to_end/test_docs.py

format: $(VENV)/.dev  ## ruff, changing files
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

wheel: docs-tools  ## dist/: the sdist, and the wheel that is built from it, checked as for an upload
	$(BIN)/python -m build
	$(DOCS)/bin/twine check --strict dist/*

constraints: $(VENV)/.python  ## pin all dependencies anew, to what pip chooses today; needs Python 3.11
	$(BIN)/python -m pip install -qq packaging
	$(BIN)/python .ci/pin.py

clean:  ## remove .venv and what was built; results stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@python=$$(for each in $(or $(PYTHON),$(PYTHONS)); do \
	  "$$each" -c '$(FITS)' 2>/dev/null && echo "$$each" && break; done); \
	test -n "$$python" || { echo "make: none of these is Python 3.11 or newer with venv and pip" \
	  "(on Debian: apt install python3-venv): $(or $(PYTHON),$(PYTHONS));" \
	  "name yours with: make PYTHON=/path/to/python" >&2; exit 1; }; \
	echo "setting up $(VENV) with $$("$$python" --version); this downloads PyTorch and takes minutes"; \
	"$$python" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml $(PINS)
	$(INSTALL) .
	@touch $@

$(VENV)/.bench: $(VENV)/.python pyproject.toml $(PINS)
	$(INSTALL) '.[bench]'
	@touch $@ $(VENV)/.run

$(VENV)/.dev: $(VENV)/.python pyproject.toml $(PINS)
	$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.run
