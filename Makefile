# make demo    the experiment of the paper, on embedded data, in about 3 minutes
# make test    the tests, but for the slow ones
# make test-slow   those: recipes at full length, what Windows lacks
# make test-gpu    what needs a GPU, and what it costs there: 8 minutes at most
# make check   ruff and mypy
# make docs    the documentation, in build/docs: pages that need no server, and ask no other host
# make demo-imagenet   surgery on real ImageNet weights
# make attack   an hour of damaged files, read by every command
# make soak     an hour of random pipelines, each edit held against a numpy model of it
# make sweep   blocks and roles of every timm architecture: 10 minutes, then 30 s
# make bench   what surgery costs, beside what it is compared to: 10 minutes, 8 GB of memory; SD_MECHA=PYTHON MERGEKIT=PYTHON, beside those, too

PYTHON ?= python3
VENV   := .venv
JOBS   ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# macOS has make 3.81. That would look for a command without special characters on its own path only, but for this:
SHELL := bash

# All but the recipes is made with it.
ifneq ($(filter demo demo-imagenet,$(or $(MAKECMDGOALS),demo)),)
include recipes/make-4.3.mk
endif

.PHONY: demo demo-imagenet test test-slow test-gpu attack soak sweep bench docs check types setup clean

demo: $(VENV)/installed
	$(MAKE) -C recipes/demo -j$(JOBS)
	@echo "The report: $(CURDIR)/recipes/demo/out/report.html"

demo-imagenet: $(VENV)/installed-dev
	$(MAKE) -C recipes/imagenet-surgery -j$(JOBS)

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 pytest -n $(JOBS) --dist worksteal -m 'not slow and not gpu'

test-slow: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 pytest -n $(JOBS) --dist worksteal -m slow

test-gpu: $(VENV)/installed-dev
	pytest -m gpu tests/gpu
	python tests/benchmarks/training.py --cuda
	python tests/benchmarks/similarity.py --cuda

attack: $(VENV)/installed-dev
	python tests/mutations/attack.py --minutes 60

soak: $(VENV)/installed-dev
	python tests/soak/soak.py --minutes 60

sweep: $(VENV)/installed-dev
	python tests/anatomy/sweep.py

bench: $(VENV)/installed-dev
	python tests/benchmarks/surgery.py --big $(if $(SD_MECHA),--sd-mecha $(SD_MECHA)) $(if $(MERGEKIT),--mergekit $(MERGEKIT))
	python tests/benchmarks/similarity.py --big
	python tests/benchmarks/stores.py

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 mkdocs build
	@echo "The documentation: $(CURDIR)/build/docs/index.html"

check: $(VENV)/installed-dev types
	ruff check .
	ruff format --check .

# commands/ is installed as wsurgery.commands: mypy sees it there in a copy. What the last check found out is kept for the next.
types: $(VENV)/installed-dev
	rm -rf build/typed && mkdir -p build/typed && cp -r wsurgery build/typed && cp -r commands build/typed/wsurgery/commands
	cd build/typed && printf '%s\n' linux darwin win32 | xargs -P $(JOBS) -I{} \
	  mypy --config-file $(CURDIR)/pyproject.toml --platform {} --cache-dir $(CURDIR)/.mypy_cache/{} -p wsurgery

setup: $(VENV)/installed-dev

# Not compiled ahead: Python compiles what is imported, and most of what these packages hold never is.
unexport PYTHONDONTWRITEBYTECODE

$(VENV)/installed: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-compile -e '.[train]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --no-compile -e '.[dev,imagenet]'
	touch $@

clean:
	rm -rf build recipes/*/out
