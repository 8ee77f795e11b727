# The two commands: `make demo` and `make test`. Both set up what they need in .venv, once.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STORE ?= store
ON ?= processes:2
PROFILE ?= desk
DEVICE ?= cpu
DATA ?=

.PHONY: demo test check bench clean reproduce-agree-to-disagree

demo: $(VENV)/core
	$(BIN)/consilience run experiments/quickstart.toml --store $(STORE) --on $(ON)
	@echo "Open this page:"
	@$(BIN)/consilience report experiments/quickstart.toml --store $(STORE) --out report.html

test: $(VENV)/dev
	$(BIN)/pytest

check: $(VENV)/dev
	@$(call part,format,$(BIN)/ruff format --check --quiet .)
	@$(call part,lint,$(BIN)/ruff check --quiet .)
	@$(call part,types,$(BIN)/mypy)
	@$(call part,imports,$(BIN)/lint-imports --no-logo)
	@$(call part,tests,$(MAKE) test)

bench: $(VENV)/dev
	$(BIN)/python -m benchmarks

# The tables of a paper, with what was published beside what comes out here.
# The whole of it, on a graphics card: make ... PROFILE=paper DEVICE=cuda ON=here
reproduce-agree-to-disagree: $(VENV)/svm
	$(BIN)/python -m scripts.agree_to_disagree --profile $(PROFILE) --store $(STORE) --on $(ON) --device $(DEVICE) --out reproduction $(if $(DATA),--data "$(DATA)")

clean:
	rm -rf $(VENV) $(STORE) report.html report.json reproduction

$(VENV)/core: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "expected Python 3.11 or newer, found none; install it or name it: make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/svm: $(VENV)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[svm]'
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,dask,ray]'
	@touch $@

# Runs one part and prints its minutes.
define part
begin=$$(date +%s); $(2) && printf '== %s: %s min\n' "$(1)" "$$(awk "BEGIN {printf \"%.2f\", ($$(date +%s) - $$begin) / 60}")"
endef
