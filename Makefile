# make demo: the main job in less than four minutes. make test: all tests and checks. Both set everything up.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN ?= runs/demo
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test test-alone test-beside test-long lint docs format lock system clean

help:
	@echo "make demo    train for about a minute, then evaluate and film the shipped student"
	@echo "make test    run the tests, with coverage, and the style and type checks"
	@echo "make test-long  run the whole pipeline at its quick preset, several minutes"
	@echo "make docs    build the documents as a site, in site/"
	@echo "make format  put the source into its standard format"
	@echo "make lock    pin the versions in $(VENV) in constraints.txt"
	@echo "make clean   remove $(VENV), caches and build products (runs/ stays)"

# A machine without OpenGL says so before the evaluation, and gets the rates without the video.
demo: $(VENV)/.train
	rm -rf $(RUN)
	@echo; echo "1. A minute of training: a random policy begins to find the block. The whole training takes 72 minutes."
	$(BIN)/alohas2r train-teacher --phase pick --preset quick --out $(RUN)/pick
	@echo; echo "2. Where it leads: the shipped student picks up peg and socket and inserts, from its two wrist cameras."
	$(BIN)/alohas2r evaluate params/student --episodes 64 --seed 7 --video $(RUN)/insertion.mp4 || \
	  $(BIN)/alohas2r evaluate params/student --episodes 64 --seed 7

# Compiles in two thirds of the time what tests run a few times only. An XLA that does not know it ends at once:
# `make test TEST_XLA_FLAGS=` leaves it out.
TEST_XLA_FLAGS ?= --xla_cpu_use_fusion_emitters=false

# Everything runs even if one part fails. Tests that measure time run one after the other; style checks and the other
# tests run beside them, with what those leave idle (nice).
test: $(VENV)/.test
	@rm -f .coverage .coverage.*; failed=0; \
	$(MAKE) --no-print-directory --jobs=2 --keep-going test-alone test-beside || failed=1; \
	$(BIN)/python -m coverage combine --quiet; \
	$(BIN)/python -m coverage report --fail-under=93 || failed=1; \
	exit $$failed

# Shown when it is over, so that it does not mingle with what runs beside it.
test-alone: $(VENV)/.test
	@log=$$(mktemp); failed=0; \
	COVERAGE_FILE=.coverage.alone $(BIN)/python -m pytest -m "alone and not long" --cov --cov-report= $(PYTEST) \
	  > $$log 2>&1 || [ $$? -eq 5 ] || failed=1; \
	cat $$log; rm -f $$log; exit $$failed

test-beside: $(VENV)/.test
	@failed=0; \
	nice -n 19 $(MAKE) --no-print-directory lint || failed=1; \
	COVERAGE_FILE=.coverage.beside XLA_FLAGS="$$XLA_FLAGS $(TEST_XLA_FLAGS)" nice -n 19 \
	  $(BIN)/python -m pytest -m "not alone and not long" -n $(WORKERS) \
	  --dist worksteal --cov --cov-report= $(PYTEST) || failed=1; \
	exit $$failed

test-long: $(VENV)/.test
	$(BIN)/python -m pytest -m long

lint: $(VENV)/.test
	@failed=0; \
	$(BIN)/ruff check . || failed=1; \
	$(BIN)/ruff format --check . || failed=1; \
	$(BIN)/pyright || failed=1; \
	$(BIN)/lint-imports --no-cache || failed=1; \
	exit $$failed

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Wrote site/index.html"

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.test
	@{ echo "# Versions that this release was tested with; made by: make lock"; \
	   $(PIP) freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+=='; } > constraints.tmp
	mv constraints.tmp constraints.txt

$(VENV)/.train: EXTRAS = train
$(VENV)/.test: EXTRAS = train,warp,export,robot,datasets,gymnasium,loggers,sweep,docs,dev

$(VENV)/.docs: EXTRAS = train,docs

# Python compiles what it imports when it does so; only many tests, in processes of their own, repay compiling beforehand.
$(VENV)/.train $(VENV)/.docs: COMPILE = --no-compile
$(VENV)/.train $(VENV)/.test $(VENV)/.docs: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(COMPILE) -c constraints.txt hatchling editables
	$(PIP) install --quiet $(COMPILE) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@

# Libraries of the system: for pictures (EGL), RealSense cameras (libusb), environments (venv).
system:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: apt-get install python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; make PYTHON=/path/to/python3.11 takes another"; exit 1; }
	@wanted=; libraries=$$(PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null); \
	case "$$libraries" in *libEGL.so.1*) ;; *) wanted="$$wanted libegl1 libgl1-mesa-dri";; esac; \
	case "$$libraries" in *libusb-1.0.so.0*) ;; *) wanted="$$wanted libusb-1.0-0";; esac; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || wanted="$$wanted python3-venv"; \
	test -n "$$wanted" || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends $$wanted >/dev/null || \
	    echo "Not installed:$$wanted; going on without (no videos, no RealSense cameras)"; \
	else \
	  echo "Missing:$$wanted (sudo apt-get install$$wanted); going on without"; \
	fi

clean:
	rm -rf $(VENV) build dist site *.egg-info .coverage .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
