# make train, make test: each makes .venv and installs what it needs first. Flags pass through ARGS:
#   make train ARGS="--epochs 1"
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: train generator strokes speech demo evaluate test lint format tensorboard notebook pictures export pretrained figures gpu clean

train: .venv/use
	$(BIN)/python train.py $(ARGS)

# Train the text-to-image generator on runs/best_model.pth.
generator: .venv/use
	$(BIN)/python -m generation.train $(ARGS)

# Train a tower for pen strokes or for speech, and add it to runs/best_model.pth.
strokes: .venv/use
	$(BIN)/python -m modalities.train strokes $(ARGS)

speech: .venv/use
	$(BIN)/python -m modalities.train speech $(ARGS)

# Build demo/minist-clip.html from runs/best_model.pth, one file to draw, type and say, and open it in the browser.
demo: .venv/use
	$(BIN)/python -m demo.build $(ARGS)

evaluate: .venv/use
	$(BIN)/python evaluate.py $(ARGS)

test: .venv/dev
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: .venv/dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

tensorboard: .venv/use
	$(BIN)/python -m tensorboard.main --logdir runs $(ARGS)

notebook: .venv/use
	$(BIN)/python -m jupyterlab inference.ipynb $(ARGS)

# The pictures of the documents, from runs/best_model.pth; and the notebook with its outputs.
pictures: .venv/dev
	$(BIN)/python -m benchmarks.pictures $(ARGS)

# runs/best_model.pth for others: as ONNX in runs/export/; as the folder of CLIP.from_pretrained("pretrained"), with its
# page without a generator in docs/.
export: .venv/dev
	$(BIN)/python -m deploy.export --onnx $(ARGS)

pretrained: .venv/use
	$(BIN)/python -m deploy.export --folder pretrained $(ARGS)
	$(BIN)/python -m demo.build --clip pretrained --generator none --scenes none --page docs/minist-clip.html --no-open

# Every figure, table and picture of the documents, of the code as it is: about three hours on two quiet CPU cores.
figures: .venv/dev
	$(BIN)/python -m benchmarks.figures $(ARGS)

# All that needs an NVIDIA GPU, what matters most first; a command that fails does not stop the others. If the tests fail,
# trust no figure. `make -n gpu` prints the commands.
GPU := $(BIN)/python -m benchmarks
gpu: .venv/dev
	-$(BIN)/python -m pytest -m cuda -n 0 tests/test_cuda.py
	-$(GPU).seeds --name default --device cuda
	-$(GPU).seeds --name speed-preset --device cuda --seeds 0 1 2 3 4 -- --preset speed
	-$(GPU).speed --device cuda
	-$(GPU).cost --device cuda
	-$(GPU).seeds --name accuracy-50 --device cuda --seeds 0 1 2 3 4 -- --preset accuracy --epochs 50
	-$(GPU).seeds --name accuracy-preset --device cuda -- --preset accuracy
	-$(GPU).speed --slow --device cuda
	$(GPU).tables

# The data, the runs and the pictures stay.
clean:
	rm -rf .venv .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than the requirements they stand for; a half-done install leaves none.
.venv/use: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "error: Python 3.10 or later is needed, this is " + sys.version.split()[0] + ": name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: .venv/use requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@
