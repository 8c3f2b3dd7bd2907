# `make demo`: set-up and the main job.  `make test`: set-up and the tests.  `make check`: what CI runs.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := train,sim,humanoid,vision,export,serve,report,hdf5,lerobot,ros,live,remote,versioned,scale,dev,parity
DEMO_MINUTES ?= 6
PYTEST ?= -n auto --dist loadfile

.PHONY: demo test check lint types slow ros2 setup clean
demo: setup
	@bash .ci/system.sh rendering
	$(BIN)/kineflow demo --minutes $(DEMO_MINUTES)

test: lint types
	@bash .ci/system.sh rendering browser jpeg egl osmesa
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)
	@bash .ci/ros_tests.sh $(PYTHON) "not slow"

# The environment of the ROS 2 nodes; tests/ros2 alone: make ros2.
ros2:
	@bash .ci/ros_tests.sh $(PYTHON) "not slow"

check:
	CI=true bash .ci/run

lint: setup
	@echo "ruff: style and imports"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	@echo "mypy: types (strict)"
	@$(BIN)/mypy -p kineflow

slow: setup
	@bash .ci/system.sh rendering browser jpeg egl osmesa
	$(BIN)/python -m pytest -m slow $(PYTEST)
	@bash .ci/ros_tests.sh $(PYTHON) slow

setup: $(STAMP)

# Installed again when the project's own requirements change; a second run starts at once.
$(STAMP): pyproject.toml .ci/constraints.txt .ci/python.sh datasets/native/frames.c
	@bash .ci/python.sh $(PYTHON) $(VENV) "$(EXTRAS)"
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-ros build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
