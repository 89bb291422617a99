# Every target sets up what it needs: Python 3.9 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
VENV26 := .venv-paddle26

.PHONY: test test-paddle26 check faults demo bench clean

# In five processes, since Paddle keeps memory of every graph that it has made or opened until a process ends: one
# process for all took 22 GiB.
PARTS := tests/*.py tests/system tests/config tests/weights tests/model tests/data tests/inference tests/evaluation \
	tests/training tests/cli tests/deploy

test: $(VENV)/ready  ## the whole suite
	for part in $(PARTS); do $(VENV)/bin/python -m pytest $$part || exit 1; done
	$(VENV)/bin/python -m pytest tests/faults

test-paddle26: $(VENV26)/ready  ## the same under Paddle 2.6.2 and numpy 1.26, the newest pair with a GPU build on PyPI
	for part in $(PARTS); do $(VENV26)/bin/python -m pytest $$part || exit 1; done
	$(VENV26)/bin/python -m pytest tests/faults

check: $(VENV)/ready  ## style, types and the fast tests
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy
	for part in $(PARTS); do $(VENV)/bin/python -m pytest -m "not slow" $$part || exit 1; done

faults: $(VENV)/ready  ## hostile files and kills, with more rounds than the suite (docs/reliability.md)
	-$(VENV)/bin/python -m pip install --quiet atheris  # not for every Python; without it one test is skipped
	PPGFL_FUZZ=30000 PPGFL_MUTATIONS=1000 PPGFL_LONG=1 PPGFL_KILLS=100 $(VENV)/bin/python -m pytest -s tests/faults
	PPGFL_KILLS=20 $(VENV)/bin/python -m pytest tests/training/test_train.py tests/inference/test_json_lines.py \
		tests/weights/test_download.py \
		-k "kill or asked_to_stop or cut or second_run"

demo: $(VENV)/ready  ## draw a data set, train, evaluate, detect: about four minutes on two cores
	$(VENV)/bin/python tools/demo.py

bench: $(VENV)/ready  ## speed against PaddleDetection and others, in environments of their own: about twenty minutes
	$(VENV)/bin/python benchmarks/compare.py

# --- the documentation

.PHONY: docs clean-docs
VENV_DOCS := .venv-docs

docs: $(VENV_DOCS)/ready  ## a site of docs/ and the docstrings, in site/; a broken link stops it
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/python -m mkdocs build --strict

$(VENV_DOCS)/ready: setup.py  # without Paddle: docstrings are read, not imported
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m pip install --quiet --upgrade "pip>=23" "setuptools>=61" wheel
	$(VENV_DOCS)/bin/python -m pip install --quiet -e ".[docs]"
	touch $@

clean: clean-docs
clean-docs:
	rm -rf $(VENV_DOCS) site

# --- the environments

$(VENV)/ready: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade "pip>=23" "setuptools>=61" wheel
	$(VENV)/bin/python -m pip install --quiet -e ".[cpu,dev]"
	touch $@

$(VENV26)/ready: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV26)
	$(VENV26)/bin/python -m pip install --quiet --upgrade "pip>=23" "setuptools>=61,<81" wheel
	$(VENV26)/bin/python -m pip install --quiet -e ".[dev]" "paddlepaddle==2.6.2" "numpy==1.26.4" "opencv-python<4.12"
	touch $@

clean:
	rm -rf $(VENV) $(VENV26) benchmarks/.envs build *.egg-info
