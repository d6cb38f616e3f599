# make .venv   environment alone     make demo   train, measure and report on real digits (about 3 minutes)
# make test    lint and tests        make clean  remove the environment and the demo's runs
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: .venv demo test lint clean

.venv: $(STAMP)

$(STAMP): pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e '.[test]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/opencrate demo

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

clean:
	rm -rf .venv runs
