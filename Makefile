# Two commands do everything: `make demo` and `make test`. Each makes the environment that it needs.

PYTHON ?= python3
ARGS ?=
EVERYTHING := train parquet cluster cpu openvino test test-torch lint cv-headless ros-kilted
# Tests run side by side, but for those with real nodes (test/conftest.py). A crash ends the run.
PYTEST := python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup --max-worker-restart 0
# OpenVINO's package beside ONNX Runtime is for processors of Intel; for those of AMD there is a build with it inside.
OPENVINO = $(if $(shell grep -sm1 AuthenticAMD /proc/cpuinfo),cpu-openvino,cpu openvino)
# The Pythons that a robot may have, from Humble's to Lyrical's, and of these the ones that can be started here.
ROBOT_PYTHONS := 3.10 3.11 3.12 3.13 3.14
PYTHONS_HERE = $(foreach version,$(ROBOT_PYTHONS),$(shell python$(version) -c 'print("$(version)")' 2>/dev/null))

# Without a usable ROS distribution, what is left of one in the environment only does harm.
ifeq ($(shell test -n "$$ROS_DISTRO" && $(PYTHON) -c "import rclpy" 2>/dev/null && echo sourced),)
unexport PYTHONPATH
unexport AMENT_PREFIX_PATH
unexport ROS_DISTRO
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-ros test-jazzy test-lowest test-robot setup lint format clean

help: ## List these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 13

demo: ## Segment a camera stream on ROS 2 and write pictures, a video and figures (options: make demo ARGS="--help")
	@$(PYTHON) tools/environment.py .venv-demo $(if $(findstring OpenVINO,$(ARGS)),$(OPENVINO),cpu) cv-headless ros-kilted
	.venv-demo/bin/python -m dinov3_seg_ros.demo $(ARGS)

setup: ## Make .venv, with everything that tests and training need
	@$(PYTHON) tools/environment.py .venv $(EVERYTHING) --optional test-tensorrt
	@.venv/bin/python tools/generate_messages.py
	@echo ".venv is ready: source .venv/bin/activate"

test: lint ## Lint, and run all tests (on ROS 2 Kilted, or on the distribution that is sourced)
	.venv/bin/$(PYTEST) $(ARGS)

test-all: test test-jazzy test-lowest test-robot ## The same, then test-jazzy, test-lowest and test-robot

test-ros: setup ## Run the ROS tests alone
	.venv/bin/$(PYTEST) -m ros $(ARGS)

test-jazzy: ## Run the ROS tests on Jazzy's wheels
	@$(PYTHON) tools/environment.py .venv-jazzy train parquet cpu test test-torch cv-headless ros-jazzy
	@.venv-jazzy/bin/python tools/generate_messages.py
	.venv-jazzy/bin/$(PYTEST) -m ros $(ARGS)

test-lowest: ## Run the tests with the lowest versions that setup.py allows
	@$(PYTHON) tools/environment.py .venv-lowest train parquet cluster cpu bag test test-torch cv-headless ros-kilted \
		--constraints constraints-lowest.txt
	.venv-lowest/bin/$(PYTEST) $(ARGS)

test-robot: $(PYTHONS_HERE:%=test-robot-%) ## Run the tests that need no PyTorch, without it, on each Python from 3.10 to 3.14
	@echo "ran on Python $(PYTHONS_HERE); not found here: $(or $(filter-out $(PYTHONS_HERE),$(ROBOT_PYTHONS)),none)"

test-robot-%: # The same on one of them
	@python$* tools/environment.py .venv-robot-$* cpu bag test cv-headless ros-kilted
	@.venv-robot-$*/bin/python tools/generate_messages.py
	.venv-robot-$*/bin/$(PYTEST) $(ARGS)

lint: setup ## Check style, types, Dockerfiles and workflows
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/hadolint docker/Dockerfile.*
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: setup ## Put the code into the project's format
	.venv/bin/ruff format .

clean: ## Remove the environments and everything that was made, except runs/
	rm -rf .venv .venv-demo .venv-jazzy .venv-lowest .venv-robot-* build install log demo_output *.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache
