# hostline. `make help` lists the targets; each makes the environment it needs on its first run.
#
#   PYTHON=...       the interpreter to build with (default: the first that tools/find-python finds)
#   VENV=...         where the environment goes (default: .venv)
#   FULL=1 ROWS=...  make scorecard: at full size; only these rows: make scorecard ROWS="R5 R9"
#   QUICK=1          make bench: a coarse answer in half a minute, which leaves the documentation alone
#   PYTEST_ARGS=...  more words for pytest: make test PYTEST_ARGS="tests/unix -k backlog"
#   HOSTLINE_BUILD_EXT=yes|no|auto   the compiled core (see CONTRIBUTING.md); HOSTLINE_PURE_PYTHON=1 runs without it
#   JOBS=...         processes that run tests beside one another (default: two for each core; 0 for none of its own)
#   RECORD=1 SEQUENCES=...  make bench-check: record the counts; only these sequences: SEQUENCES="connect items"

VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=
JOBS ?= auto

py := $(VENV)/bin/python
pytest := $(py) -m pytest
# Tests that judge the source text; `make check` runs them, and they are part of `make test` too.
gates := tests/test_floors.py tests/test_forbidden.py tests/test_parity.py tests/test_size.py

# What the compiled core is made of: setup.py compiles each module with a .pxd beside it, and each .pyx.
pxd := $(shell find src -name '*.pxd')
core := setup.py $(shell find src -name '*.pyx') $(pxd) $(wildcard $(pxd:.pxd=.py))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='	' read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

# --- environments ------------------------------------------------------------------------------------

$(VENV)/bin/pip:
	@python=$$(tools/find-python $(PYTHON)) && \
		echo "making $(VENV) with $$python (once)" && \
		"$$python" -m venv $(VENV)

# hostline itself, its sources where they are and its compiled core beside them: anew when what is compiled changes.
$(VENV)/.has-hostline: pyproject.toml $(core) | $(VENV)/bin/pip
	@echo "installing hostline into $(VENV) (once, and when its core changed; a minute or so)"
	@$(py) -m pip install -qq --disable-pip-version-check --editable .
	@touch $@

# One stamp for each extra: what it requires, again when pyproject.toml changes.
$(VENV)/.has-%: pyproject.toml | $(VENV)/.has-hostline
	@echo "installing what hostline[$*] requires into $(VENV) (once)"
	@$(py) tools/extra-requirements $* > $@.txt
	@$(py) -m pip install -qq --disable-pip-version-check --requirement $@.txt
	@touch $@

# --- what people run ---------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.has-cli ## two services, a file of orders, a report: under a minute
	@$(VENV)/bin/hostline demo

.PHONY: test
test: $(VENV)/.has-test ## the whole suite, on asyncio's loop and on uvloop
	@tools/run-tests $(JOBS) $(py) $(PYTEST_ARGS)

.PHONY: quick
quick: $(VENV)/.has-test ## the suite without the tests marked slow
	@tools/run-tests $(JOBS) $(py) -m "not slow" $(PYTEST_ARGS)

.PHONY: conformance
conformance: $(VENV)/.has-cli $(VENV)/.has-peers ## the hygiene table, hostline beside its peers
	@$(VENV)/bin/hostline conformance

.PHONY: bench
bench: $(VENV)/.has-cli $(VENV)/.has-bench ## hostline beside C, Go and its peers, and the page and charts of the run; QUICK=1
ifdef QUICK
	@mkdir -p benchmarks/out
	@$(VENV)/bin/hostline bench --quick --chart benchmarks/out/quick.svg
else
	@$(VENV)/bin/hostline bench --pin alone --json > benchmarks/results.json.new
	@mv benchmarks/results.json.new benchmarks/results.json
	@$(VENV)/bin/hostline bench --from benchmarks/results.json
	@$(py) benchmarks/publish.py
endif

.PHONY: bench-check
bench-check: $(VENV)/.has-test ## instruction counts of fixed calls against the recorded ones (valgrind); RECORD=1 records
	@$(py) -m benchmarks.guard $(if $(RECORD),--record) $(SEQUENCES)

.PHONY: scorecard
scorecard: $(VENV)/.has-test ## what hostline promises, measured row by row; FULL=1 takes hours
	@$(py) -m scorecard $(if $(FULL),--full) $(ROWS)

# --- what developers run -----------------------------------------------------------------------------

.PHONY: check
check: $(VENV)/.has-dev ## format, lint, types, floors, forbidden names
	$(py) -m ruff format --check .
	$(py) -m ruff check .
	$(py) -m mypy
	$(pytest) -q $(gates)
	$(py) -m mypy --no-error-summary tests/typing
	$(py) -m pyright --pythonpath $(py) tests/typing

.PHONY: format
format: $(VENV)/.has-dev ## bring the source into its format and order
	$(py) -m ruff check --fix-only --quiet .
	$(py) -m ruff format .

.PHONY: docs
docs: $(VENV)/.has-docs ## build the documentation into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(py) -m mkdocs build --strict --quiet
	@echo "see site/index.html"

.PHONY: build
build: $(VENV)/.has-dev ## wheels and sdist in dist/, each tried in an empty environment
	$(py) tools/check_dist.py

.PHONY: clean
clean: ## remove what the targets above wrote, but for the environments
	rm -rf build dist site benchmarks/out src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools examples benchmarks scorecard -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: distclean
distclean: clean ## remove the environments as well
	rm -rf .venv .venv-*
	find src -name '*.so' -delete
