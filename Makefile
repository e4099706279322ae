# The developer's commands. Everything happens in $(VENV); PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := $(wildcard $(foreach folder,csrc csrc/cpu csrc/cuda tests/ops/emulated,$(addprefix $(folder)/,*.cpp *.cu *.h *.def)))

DEMO := detection/mask_rcnn_piip_nano_shapes
RUN ?= runs/demo
SMOKE ?= runs/smoke
NANO := $(DEMO) segmentation/upernet_piip_nano_shapes classification/piip_nano_shapes
SMALL := data.train.root=$(SMOKE)/shapes data.train.images=64 data.val.root=$(SMOKE)/shapes data.val.images=16 \
	schedule.iterations=32 schedule.warmup_iterations=4

.PHONY: help install demo test lint format smoke bench cubin sanitize gpu clean

help:
	@echo "make demo   train, evaluate and predict with a small network on generated images"
	@echo "make test   run the tests"
	@echo "make lint   check style, types and formatting"
	@echo "make format rewrite the sources in the project's style"
	@echo "make smoke  two minutes of the main jobs through the command line"
	@echo "make bench  measure the ops; the table goes to benchmarks/results"
	@echo "make cubin  compile the CUDA kernels with nvcc and tabulate their machine code; no GPU is needed"
	@echo "make sanitize  run the CPU kernels under AddressSanitizer and UBSan"
	@echo "make gpu    build, test and measure the ops on a GPU machine"
	@echo "make clean  remove what was built; runs/, data/ and $(VENV) stay"

install: $(INSTALLED)

# The stamp makes the next command start at once; it is older than its sources when something has to be built again.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/piip train $(DEMO) --output $(RUN) --resume
	$(BIN)/piip eval $(DEMO) --weights $(RUN) --output $(RUN)/eval
	$(BIN)/piip predict $(DEMO) data/shapes/val-*/images/00000*.jpg --weights $(RUN) --output $(RUN)/predictions
	@echo
	@echo "overlays  $(RUN)/predictions"
	@echo "curves    $(RUN)/curves.png"
	@echo "numbers   $(RUN)/metrics.jsonl and $(RUN)/eval"

# One process for each core, each with one thread, which is what most tests have work for.
test: export OMP_NUM_THREADS ?= 1
test: export OMP_WAIT_POLICY ?= passive
test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist worksteal

# The whole chain of every task in little: it shows that the parts fit, not that anything is learned.
smoke: $(INSTALLED)
	@set -ex; for config in $(NANO); do \
		run=$(SMOKE)/$$(basename $$config); \
		$(BIN)/piip train $$config --output $$run $(SMALL); \
		$(BIN)/piip eval $$config --weights $$run --output $$run/eval $(SMALL) --json; \
		$(BIN)/piip predict $$config $(SMOKE)/shapes/val-*/images --weights $$run --output $$run/predictions; \
		test -s $$run/curves.png -a -s $$run/metrics.jsonl -a -s $$run/eval/metrics.json; \
	done

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.ops

cubin: $(INSTALLED)
	$(BIN)/python -m benchmarks.machine_code

CASES ?= 20000
sanitize: $(INSTALLED)
	$(BIN)/python tests/ops/sanitize.py --cases $(CASES) $(SANITIZE)

gpu:
	PYTHON=$(PYTHON) bash benchmarks/gpu.sh

clean:
	rm -rf build dist *.egg-info piip/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis $(INSTALLED)
	find piip tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
