# `make demo` and `make test` set up everything they need in .venv, even on a fresh machine.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet

.PHONY: demo test lint slow aot train docs notebooks browser clean

demo: $(VENV)/.run
	$(VENV)/bin/python -m reground_jax.demo --out out/demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

train: $(VENV)/.run
	$(PIP) --editable ".[train]"
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh reground_jax/training/configs/emoji64/train.sh out/emoji64

# Runs the notebooks again, in place.
notebooks: $(VENV)/.test
	$(VENV)/bin/python examples/execute.py

slow: $(VENV)/.test
	$(VENV)/bin/python -m pytest -m slow -s

# The TPU compiler, for the tests marked aot. JAX then looks for a TPU unless JAX_PLATFORMS says cpu.
aot: $(VENV)/.test
	$(PIP) --editable ".[aot]"

# The documentation, into out/docs. A broken link or name is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# The page of `reground-jax app`, in Chromium, which must be installed (Debian: apt-get install chromium).
browser: $(VENV)/.test
	$(PIP) --editable ".[app,browser]"
	$(VENV)/bin/python -m pytest -m browser tests/test_app_browser.py

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.venv pyproject.toml
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.venv pyproject.toml
	$(PIP) --editable ".[test,dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.venv pyproject.toml
	$(PIP) --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
