# Every target makes the environment it needs; the second time that is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two cores are shared by the tests' workers: one thread each.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1
# The banner is about another product.
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

.PHONY: install demo test test-openvino check docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[export,detection,tables,clip,diffusion,search,dev,docs]'
	touch $@

demo: install
	$(BIN)/stillroom run kd --out runs/demo
	@echo "The report lies at $(CURDIR)/runs/demo/report.html"

test: install
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile

# OpenVINO lies beside the environment, where nothing else sees it.
test-openvino: install
	test -d build/openvino/openvino || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt --target build/openvino openvino
	$(TEST_ENV) PYTHONPATH=build/openvino $(BIN)/python -m pytest tests/engine/inference tests/tasks/classification/test_file_teacher.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/catalogue.py
	$(DOCS) --quiet

docs: install
	$(DOCS)
	@echo "The site lies at $(CURDIR)/site/index.html"

clean:
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
