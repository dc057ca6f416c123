# make demo   inject the sample book and ask about it: bundled model, CPU, no download but the packages
# make test   everything CI runs, with the newest and the oldest supported libraries
# make clean  remove environments, caches and the demo's files

PYTHON ?= python3
# Small models gain nothing from many threads, and test processes share the cores.
TEST_ENV = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: demo test lint test-newest test-oldest clean

demo: .venv/installed
	sh assets/demo.sh .venv/bin/mplus

test: lint test-newest test-oldest

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test-newest: .venv/installed-dev
	$(TEST_ENV) .venv/bin/python -m pytest -n 2

test-oldest: .venv-oldest/installed-dev
	$(TEST_ENV) .venv-oldest/bin/python -m pytest -n 2 tests/core tests/inference tests/evaluation/systems

# Always with constraints: an open torch requirement takes the newest build with several GB of CUDA packages.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e ".[readers]"
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch .venv/installed $@

.venv-oldest/installed-dev: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[snapkv]" pytest pytest-xdist hypothesis
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
