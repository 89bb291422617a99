# Every target sets up what it needs: Python 3.9 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
VENV26 := .venv-paddle26
# Tests run in this many processes at a time.
JOBS := 2

.PHONY: test test-all test-paddle26 check style faults demo bench bench-check clean

test:  ## units, parity with recorded values, a run of each command: six minutes on two cores
	$(call run,$(FAST))

test-all:  ## all there is: test, style, kills, faults, several processes, docs, and what depends on Paddle on 2.6.2
	$(call run,$(FAST) style docs $(DRILLS) $(BOTH26))

test-paddle26:  ## all of it under Paddle 2.6.2 and numpy 1.26, the newest pair with a GPU build on PyPI
	$(call run,$(FAST26) $(DRILLS26))

check: style test  ## before each commit

style: $(VENV)/ready  ## ruff and mypy
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy

faults: $(VENV)/ready  ## hostile files and kills, with more rounds than test-all (docs/reliability.md)
	-$(VENV)/bin/python -m pip install --quiet atheris  # not for every Python; without it one test is skipped
	PPGFL_FUZZ=30000 PPGFL_MUTATIONS=1000 PPGFL_LONG=1 PPGFL_KILLS=100 $(VENV)/bin/python -m pytest -s tests/faults \
		--ignore tests/faults/test_kills.py --ignore tests/faults/test_several_processes.py
	PPGFL_KILLS=20 $(VENV)/bin/python -m pytest tests/faults/test_kills.py tests/training/test_train.py \
		tests/inference/test_json_lines.py tests/weights/test_download.py -k "kill or asked_to_stop or cut or second_run"
	PPGFL_CALLS=60 $(VENV)/bin/python -m pytest tests/inference/test_threads.py -k many_calls

# --- how the tests run
#
# A test that takes half a minute or needs several processes is marked `drill`, all of tests/faults is, and the rest is
# what `make test` runs. Each folder has a process of its own, since Paddle keeps memory of every graph that it has made
# or opened until a process ends: one process for all took 22 GiB. By itself: `make test-inference`,
# `make drills-inference`, `make test26-inference`, `make drills26-inference`. All run, also after a failure; what each
# prints is in build/tests, and on the screen if it failed.

LOGS := build/tests
LONGEST := inference training deploy evaluation model project
FOLDERS := $(LONGEST) $(filter-out faults $(LONGEST),$(sort $(notdir $(patsubst %/,%,$(dir $(wildcard tests/*/test_*.py))))))
FAST := $(FOLDERS:%=test-%)
FAST26 := $(FOLDERS:%=test26-%)
files = $(if $(filter project,$(1)),tests/test_*.py,tests/$(1)/test_*.py)
DRILLED := faults $(foreach folder,$(FOLDERS),$(if $(shell grep -l mark.drill $(call files,$(folder))),$(folder)))
DRILLS := $(DRILLED:%=drills-%)
DRILLS26 := $(DRILLED:%=drills26-%)
# What test-all leaves to test-paddle26, since it does the same on every Paddle: configs, command lines, texts, pages,
# disks, hostile files, kills, and of the drills also data sets, the service and clusters, tables.
SAME := config system cli project
BOTH26 := $(filter-out $(SAME:%=test26-%),$(FAST26)) drills26-inference drills26-training drills26-processes

.PHONY: $(FAST) $(FAST26) $(DRILLS) $(DRILLS26) drills26-processes
$(FAST): test-%: $(VENV)/ready
	$(call pytest,$(VENV),-m "not drill")
$(FAST26): test26-%: $(VENV26)/ready
	$(call pytest,$(VENV26),-m "not drill")
$(DRILLS): drills-%: $(VENV)/ready
	$(call pytest,$(VENV),-m drill)
$(DRILLS26): drills26-%: $(VENV26)/ready
	$(call pytest,$(VENV26),-m drill)

drills26-processes: $(VENV26)/ready
	$(call pytest,$(VENV26),-m drill,$(addprefix tests/faults/test_,numbers.py several_processes.py))

# pytest of the environment $(1) with the arguments $(2) on the files $(3), or else on the folder $*; "project" is what
# tests/ itself holds. It ends with 5 where a folder has no such tests. One thread each, as there are processes enough:
# two would take 1.4 times as much of the processors.
define pytest
@mkdir -p $(LOGS)
@OMP_NUM_THREADS=1 $(1)/bin/python -m pytest $(2) $(or $(3),$(call files,$*)) > $(LOGS)/$@.log 2>&1 || [ $$? = 5 ] || \
	{ cat $(LOGS)/$@.log; exit 1; }
@echo "$@: $$(tail -n 1 $(LOGS)/$@.log)"
endef

# The targets $(1), JOBS at a time, and in the end how many tests passed or which targets failed.
define run
@rm -rf $(LOGS)
@$(MAKE) --no-print-directory --keep-going --jobs=$(JOBS) $(1:%=passed-%) || { cd $(LOGS) && \
	for target in $(1); do [ -e $$target.passed ] || failed="$$failed $$target"; done; echo "failed:$$failed"; exit 1; }
@grep -ho '[0-9]* passed' $(LOGS)/*.log | awk '{ n += $$1 } END { print n " passed, 0 failed" }'
endef

passed-%: %
	@mkdir -p $(LOGS); touch $(LOGS)/$*.passed

demo: $(VENV)/ready  ## draw a data set, train, evaluate, detect: under five minutes on two cores
	$(VENV)/bin/python tools/demo.py

bench: $(VENV)/ready  ## speed against PaddleDetection and others, in environments of their own: twenty minutes to over an hour
	$(VENV)/bin/python benchmarks/compare.py

bench-check: $(VENV)/ready  ## whether the ratios that matter are still those of benchmarks/RESULTS.json: ten minutes
	$(VENV)/bin/python benchmarks/compare.py --check

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
	rm -rf $(VENV) $(VENV26) benchmarks/.envs build .pytest_cache *.egg-info
