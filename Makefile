# make demo     train, measure and report on real digits (about 2 minutes)
# make test     lint (ruff, pyright) and tests      make .venv    the environment alone
# make pages    renew the generated pages: docs/api.md and the tables of docs/doctor_checks.md and docs/results/doctor.md
# make docs     the documents as a site, in build/site; a dead link is an error
# make notebooks   make docs-test       the tutorials as notebooks, in build/notebooks; run them, for `make docs` to show
# make lock     renew requirements/*.txt: the newest and the oldest versions that pyproject.toml allows
# make test-lowest   make test-latest       the contract, parity and command-line tests at both ends of those ranges
# make clean    remove the environments and the demo's runs
#
# The environments hold exactly what requirements/*.txt say, by hash. Only torch comes by version: its build for CPU is
# taken where pip finds one (a folder in PIP_FIND_LINKS, or PyTorch's index), else PyPI's. `make TORCH=torch==2.13.0 ...`
# sets another version.
PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
STAMP := .venv/.installed
RANGE_TESTS := tests/contract tests/parity tests/cli
COMPILE = .venv-lock/bin/uv pip compile --quiet --upgrade --python-version 3.11 --prerelease disallow --generate-hashes \
	--custom-compile-command "make lock" -c constraints-cpu.txt --excludes requirements/cuda.txt \
	--no-emit-package torch --no-emit-package opencrate pyproject.toml

pip = $(1)/bin/python -m pip --quiet --disable-pip-version-check
# A new environment in folder $(1).
new = $(PYTHON) -m venv --clear $(1)
# Into $(1), torch's version $(2), beside what is installed.
torch = $(pip) install --retries 1 --extra-index-url $(TORCH_INDEX) $(2)
# Into $(1), this package, for editing in place.
this = $(pip) install --no-deps --no-build-isolation --editable .

pytest = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

.PHONY: .venv demo test test-lowest test-latest lint pages docs notebooks docs-test lock clean

.venv: $(STAMP)

$(STAMP): pyproject.toml constraints-cpu.txt requirements/lock.txt
	$(call new,.venv)
	$(call pip,.venv) install --no-deps --require-hashes -r requirements/lock.txt
	$(call torch,.venv,$(or $(TORCH),torch -c constraints-cpu.txt))
	$(call this,.venv)
	$(call pip,.venv) check
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/opencrate demo

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples docs weights
	$(BIN)/ruff format --check src tests benchmarks examples docs weights
	$(BIN)/basedpyright --level error

pages: $(STAMP)
	$(BIN)/python docs/make_api.py
	$(BIN)/python benchmarks/doctor_study.py docs

docs: .venv-docs/.installed
	.venv-docs/bin/python docs/make_site.py
	.venv-docs/bin/zensical build --strict --clean

notebooks: .venv-docs/.installed
	.venv-docs/bin/python docs/make_site.py notebooks

docs-test: notebooks
	.venv-docs/bin/python -m pytest -c /dev/null --rootdir build/notebooks --nbmake --nbmake-timeout=120 --overwrite \
		build/notebooks

.venv-docs/.installed: pyproject.toml constraints-cpu.txt
	$(call new,.venv-docs)
	$(call torch,.venv-docs,$(or $(TORCH),torch -c constraints-cpu.txt))
	$(call pip,.venv-docs) install --editable '.[docs]' -c constraints-cpu.txt
	touch $@

test: lint
	$(call pytest,.venv)

test-lowest: .venv-lowest/.installed
	$(call pytest,.venv-lowest) $(RANGE_TESTS)

test-latest: .venv-latest/.installed
	$(call pytest,.venv-latest) $(RANGE_TESTS)

.venv-lowest/.installed: pyproject.toml requirements/lowest.txt
	$(call new,.venv-lowest)
	$(call pip,.venv-lowest) install --no-deps --require-hashes -r requirements/lowest.txt
	$(call torch,.venv-lowest,$(or $(TORCH),torch==2.9.0))
	$(call this,.venv-lowest)
	$(call pip,.venv-lowest) check
	touch $@

.venv-latest/.installed: FORCE
	$(call new,.venv-latest)
	$(call torch,.venv-latest,--no-deps $(or $(TORCH),torch))
	$(call pip,.venv-latest) install --upgrade --editable '.[test]'
	$(call pip,.venv-latest) check
	touch $@
FORCE:

lock:
	$(call new,.venv-lock)
	$(call pip,.venv-lock) install uv
	$(COMPILE) --extra dev --universal --fork-strategy fewest -o requirements/lock.txt
	$(COMPILE) --extra test --resolution lowest-direct -o requirements/lowest.txt

clean:
	rm -rf .venv .venv-lowest .venv-latest .venv-lock .venv-docs build runs
