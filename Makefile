# Everything a newcomer needs. `make` alone lists the targets.
PYTHON := .venv/bin/python
RUN := env -u PYTHONPATH ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST

.PHONY: help setup doctor demo test lint docs bench-sim bench-recorder bench-gate bench-policy bench-train bench-learning bench-deployment clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## install everything into .venv (idempotent)
	@bash scripts/setup.sh

doctor: setup ## go or no-go for this machine, with cause and remedy
	@$(RUN) .venv/bin/rlco doctor

demo: setup ## the whole method on the stand-in robot; writes runs/demo/report.html
	@$(RUN) .venv/bin/rlco demo

test: setup ## all tests
	@$(RUN) $(PYTHON) -m pytest

lint: setup ## style, import rules, package manifests
	@$(PYTHON) -m ruff check . && $(PYTHON) scripts/check_layers.py

docs: setup ## write the generated reference pages again
	@$(PYTHON) -m rlco_trainer.contract_page > docs/contract.md && $(RUN) $(PYTHON) -m rlco_trainer.reference docs

bench-sim: setup ## stock ManiSkill and our twins side by side: control steps per second, memory
	@$(RUN) $(PYTHON) benchmarks/sim.py

bench-recorder: setup ## recorder node and plain rosbags writer in one run: losses, processor time, memory
	@$(RUN) $(PYTHON) benchmarks/recorder.py

bench-gate: setup ## command gate: what it adds to a command's way, how soon it stops, an hour without a false trip
	@$(RUN) $(PYTHON) benchmarks/gate.py

bench-policy: setup ## policy node: its overhead, and gaps with a model of 300 ms at 5, 10 and 20 Hz
	@$(RUN) $(PYTHON) benchmarks/policy_node.py

bench-train: setup ## Stage II against the same on stock ManiSkill and ManiSkill's PPO recipe: steps per second, where the time goes
	@$(RUN) $(PYTHON) benchmarks/training.py

bench-learning: setup ## Stage II from middling policies to a target success: two tasks, both compact policies, three seeds
	@$(RUN) $(PYTHON) benchmarks/learning.py

bench-deployment: setup ## the tutorial's path for all tasks and both compact policies, with a takeover: latencies, gaps, success
	@$(RUN) $(PYTHON) benchmarks/deployment.py

clean: ## remove build products (keeps runs/ and .venv)
	rm -rf ros2_ws/build ros2_ws/log .pytest_cache .ruff_cache
