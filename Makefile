# make run: install, open the app.  make test: all tests, in a browser too.  make check: lint, format, types.
# make format: format the code.  make space SPACE=owner/name: upload the app to a Hugging Face Space.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

.PHONY: run test check format space

run: $(VENV)/run.stamp
	$(BIN)/python app.py

test: $(VENV)/test.stamp
	$(BIN)/python -m tests.find_browser
	$(BIN)/python -m pytest

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

space: $(VENV)/run.stamp
	$(BIN)/python -m cnn_demo space "$(SPACE)" $(if $(FORCE),--force)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/test.stamp: tests/requirements.txt $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@
