# Every target works from a fresh clone: it makes or takes an environment, installs what is
# missing, then runs. Written for GNU make 3.81 and a POSIX shell.
#
# Environment, in this order: PYTHON=/path/to/python, an active virtual or conda environment,
# otherwise .venv in this folder.

.DEFAULT_GOAL := help
.PHONY: help setup setup-lowest browser demo test test-lowest lint docs

# uv compiles nothing, so that every module is compiled by whoever imports it first, and kept.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
WORKERS ?= 2
# Each worker has a run of neighbours, which share what their module makes.
SPREAD := -n $(WORKERS) --dist worksteal
# The lowest versions that setup.py allows have an environment of their own (8 GB).
LOWEST := .venv-lowest
# What other libraries have a part in: reading, training, evaluating, writing weights.
QUICK := tests/integration/test_pipeline.py \
  tests/cache/test_cache_store.py tests/test_visualization.py tests/test_lvis_compat.py \
  $(addprefix tests/clip/test_,device_crops.py eva_weights.py loading.py teacher.py vocabulary_builder.py) \
  tests/clip/dense/test_dense_vit.py \
  $(addprefix tests/projects/glip/test_,glip_text.py glip_parts.py prompt_tokenizer.py) \
  $(addprefix tests/data/test_,coco_json.py images.py json_stream.py mapper.py train_loader.py) \
  $(addprefix tests/engine/test_,checkpoint.py optimization.py trainer.py weights.py) \
  $(addprefix tests/evaluation/test_,coco_evaluator.py engines.py failures.py lvis_evaluator.py) \
  $(addprefix tests/modeling/test_,backbone.py classifier.py mask_head.py meta_arch.py tta.py) \
  tests/vild/test_roi_heads.py tests/web/test_web_page.py

ifdef PYTHON
  PY := $(PYTHON)
else ifdef VIRTUAL_ENV
  PY := $(VIRTUAL_ENV)/bin/python
else ifneq ($(filter-out base,$(CONDA_DEFAULT_ENV)),)
  PY := $(CONDA_PREFIX)/bin/python
else
  PY := $(VENV)/bin/python
  NEEDS := $(VENV)/bin/python
endif

help:
	@echo "make demo    set up if needed, then the whole story: data, teacher, training, AP, pictures"
	@echo '             NAMES="red anchor, snowman" looks for these names; OUTPUT=folder (output/demo);'
	@echo '             SYSTEM=vild: the system that is shown (projects/README.md)'
	@echo 'make test    set up if needed, then all tests; ARGS="tests/test_files.py -k name" selects'
	@echo "make test-lowest  the quick tests on the lowest versions that setup.py allows"
	@echo "make lint    set up if needed, then ruff (rules, format), mypy and the layers of imports"
	@echo "make docs    set up if needed, then the site: build/docs/index.html"
	@echo "make setup   only set up; FORCE=1 checks every step again"
	@echo "Python 3.10 to 3.12. Environment: PYTHON=/path/to/python, else the active one, else .venv"

# The interpreters of pyenv are looked at last: its shims only reach the selected version.
$(VENV)/bin/python:
	@for candidate in python3 python3.12 python3.11 python3.10 \
	    "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[012].*/bin/python3; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' \
	      >/dev/null 2>&1; then \
	    echo "creating $(VENV) with $$("$$candidate" --version)"; \
	    exec "$$candidate" -m venv $(VENV); \
	  fi; \
	done; \
	echo "error: found no Python 3.10, 3.11 or 3.12 (python3 is: $$(python3 --version 2>&1))." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1

setup: $(NEEDS)
	@"$(PY)" tools/setup_environment.py $(if $(FORCE),--force)

# Without one the tests of the web page in a browser are skipped, and say so.
browser: setup
	@"$(PY)" tools/install_browser.py || true

demo: setup
	@"$(PY)" tools/run_demo.py $(if $(SYSTEM),--system "$(SYSTEM)") \
	  $(if $(NAMES),--names "$(NAMES)") $(if $(OUTPUT),--output "$(OUTPUT)")

test: setup browser
	@OMP_NUM_THREADS=1 "$(PY)" -m pytest -q $(SPREAD) $(if $(ARGS),$(ARGS),tests)

setup-lowest: $(NEEDS)
	@test -x $(LOWEST)/bin/python || "$(PY)" -m venv $(LOWEST)
	@$(LOWEST)/bin/python tools/setup_environment.py --lowest

test-lowest: setup-lowest
	@OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q $(SPREAD) $(if $(ARGS),$(ARGS),$(QUICK))

lint: setup
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy ovd_d2 tools projects
	"$(PY)" -c 'from importlinter.cli import lint_imports_command as run; run()'

# -E: what the pages say of the code is looked up again. Links to the outside are not followed.
docs: setup
	@OMP_NUM_THREADS=1 "$(PY)" -m sphinx -E -q -W --keep-going -c docs . build/docs
	@echo "build/docs/index.html"
