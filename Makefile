# Two commands do everything: `make demo` and `make test`. Each makes the environment it needs.

PYTHON ?= python3
ARGS ?=
ROS_TESTS := -m ros

# Without a usable ROS distribution, what is left of one in the environment only does harm.
ifeq ($(shell test -n "$$ROS_DISTRO" && $(PYTHON) -c "import rclpy" 2>/dev/null && echo sourced),)
unexport PYTHONPATH
unexport AMENT_PREFIX_PATH
unexport ROS_DISTRO
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-all setup lint format clean

help: ## List these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: ## Segment a camera stream on ROS 2 and write pictures, a video and figures (options: make demo ARGS="--help")
	@$(PYTHON) tools/environment.py .venv-demo cpu cv-headless ros-kilted
	.venv-demo/bin/python -m dinov3_seg_ros.demo $(ARGS)

setup: ## Make .venv, with all that tests and training need
	@$(PYTHON) tools/environment.py .venv train cpu test cv-headless ros-kilted
	@echo ".venv is ready: source .venv/bin/activate"

test: setup ## Lint, and run all tests (on ROS 2 Kilted, or the distribution that is sourced)
	.venv/bin/ruff check .
	.venv/bin/python -m pytest $(ARGS)

test-all: test ## The same, and the ROS tests on Jazzy too
	@$(PYTHON) tools/environment.py .venv-jazzy train cpu test cv-headless ros-jazzy
	.venv-jazzy/bin/python -m pytest $(ROS_TESTS) $(ARGS)

lint: setup ## Check style
	.venv/bin/ruff check .

format: setup ## Put the code into the project's format
	.venv/bin/ruff format .

clean: ## Remove the environments and everything that was made, but for runs/
	rm -rf .venv .venv-demo .venv-jazzy build install log demo_output *.egg-info .pytest_cache .ruff_cache
