# Every target works from a clean checkout with Python 3.11 or newer and nothing else; what e2e, soak
# and contract need besides, each says.
PYTHON ?= python3
PIP = -m pip install -q --disable-pip-version-check
BIN = .venv/bin
NEWEST = .venv-newest/bin
DRIVER = .venv-driver/bin
TOOLS = .venv-tools/bin
# Two files of tests beside each other, each in one process.
BESIDE = -n 2 --dist loadfile
# Fixtures need no types; an attribute of a torch module is `Tensor | Module` to mypy, whatever it
# is; a test gives wrong values on purpose. Options of its own need a cache of their own.
MYPY_TESTS = --cache-dir .mypy_cache/tests --explicit-package-bases --allow-untyped-defs --allow-incomplete-defs \
	--disable-error-code union-attr --disable-error-code operator --disable-error-code index --disable-error-code arg-type \
	--disable-error-code assignment

.PHONY: install demo test e2e check format newest bench gpu attack soak contract docs docs-site messages picture dist clean

install: .venv/stamp

# A stamp is written last: an installation that broke off is done again, and so is one older than
# what it was made from.
.venv/stamp: pyproject.toml constraints/cloud.txt
	@echo "Installing the libraries into .venv: some minutes."
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c constraints/cloud.txt -e '.[train,cloud,bucket,quantized,tensorboard,alerts,sweep,dev]'
	touch $@

.venv-newest/stamp: pyproject.toml constraints/newest.txt
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	$(NEWEST)/python $(PIP) -c constraints/newest.txt -e '.[train,bucket,quantized,tensorboard,alerts,dev]'
	touch $@

# What runs SkyPilot's own program for clouds here: tests/cluster/driver.py.
.venv-driver/stamp: constraints/driver.txt constraints/cloud.txt
	rm -rf .venv-driver
	$(PYTHON) -m venv .venv-driver
	$(DRIVER)/python $(PIP) -c constraints/cloud.txt -r constraints/driver.txt 'skypilot[server]'
	touch $@

# What makes the site and checks a release.
.venv-tools/stamp: constraints/tools.txt
	rm -rf .venv-tools
	$(PYTHON) -m venv .venv-tools
	$(TOOLS)/python $(PIP) -r constraints/tools.txt
	touch $@

# Train a small model on real digits, here and now.
demo: install
	$(BIN)/xrun recipes/digits.yaml --yes

# Everything that has to hold: style, types, the tests (with the built wheel in an empty
# environment), and the container half once more with the newest libraries that exist.
test: check
	$(BIN)/pytest $(BESIDE)
	$(MAKE) newest

# What needs programs that the README does not name: managed jobs of a real SkyPilot, also on a Slurm
# of their own, with machines that are taken away, and on two Ray nodes as on clouds; torch.compile;
# the site, and pages in a browser. Says which Debian packages it needs (tests/cluster/packages.txt) where they are missing.
e2e: install .venv-driver/stamp .venv-tools/stamp
	$(BIN)/pytest -m "e2e and not soak"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy runner/xrun runner/xrun_sky
	$(BIN)/mypy models
	$(BIN)/mypy datasets
	$(BIN)/mypy $(MYPY_TESTS) tests servers

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

newest: .venv-newest/stamp
	$(NEWEST)/pytest $(BESIDE) -m "not soak and not e2e and not contract and not cloud and not once"

# xrun and its peers side by side: docs/performance.md.
bench: .venv-newest/stamp
	$(NEWEST)/python $(PIP) -c constraints/newest.txt -e '.[bench]'
	$(NEWEST)/python -m benchmarks

# The tests that need a GPU, and rows 1 to 4 and 7 on it: ten minutes, no network, whatever torch
# $(PYTHON) has. Says what it lacks and ends where there is no GPU; docs/performance.md lists what stays
# unseen.
gpu:
	PYTHONPATH=runner:servers:$$PYTHONPATH $(PYTHON) -m benchmarks.gpu

# Looks for faults: random models, recipes, damages, signals and servers for ten minutes, or as told:
# `make attack MINUTES=60`, `make attack SEED=123 KIND=model` for one try again.
attack: install
	PYTHONPATH=tests $(BIN)/python -m attack $(and $(MINUTES),--minutes $(MINUTES)) $(and $(FIRST),--first $(FIRST)) \
		$(and $(SEED),--seed $(SEED)) $(and $(KIND),--kind $(KIND))

# The long drills, sweeps and simulations: hours; one of them needs rsync and ssh. What came of them
# is kept by the day in tests/soak/.
soak: install
	$(BIN)/pytest -m soak --timeout 7200 --results tests/soak

# The same round trips against the public Hub and W&B: needs HF_TOKEN and WANDB_API_KEY in the environment.
contract: install
	$(BIN)/pytest -m contract

# Make again what is made from the sources.
docs: install
	$(BIN)/xrun schema > recipes/recipe.schema.json.new
	mv recipes/recipe.schema.json.new recipes/recipe.schema.json
	$(BIN)/python -c "from xrun.recipe.docs import recipe_docs; print(recipe_docs(), end='')" > docs/recipes.md.new
	mv docs/recipes.md.new docs/recipes.md
	$(PYTHON) tests/support/house.py docs/house.svg
	PYTHONPATH=tests $(BIN)/python -m support.reference docs

# docs/ as a site, in site/: a link that leads nowhere is an error. `python3 -m http.server -d site` shows it, with its search.
docs-site: .venv-tools/stamp
	$(TOOLS)/zensical build --strict --clean

# Every message that people may read, with file and line: to be read as one text after many changes.
messages: install
	@PYTHONPATH=tests $(BIN)/python -m support.messages

# Kill a run twelve times, and draw its loss over the undisturbed one's.
picture: install
	PYTHONPATH=tests $(BIN)/python -m support.killed docs/drill.svg

# Wheel and sdist as an index wants them; CONTRIBUTING.md says what comes before and after.
dist: install .venv-tools/stamp
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(TOOLS)/twine check --strict dist/*
	$(TOOLS)/check-wheel-contents dist/*.whl

# Runs are kept: they are yours.
clean:
	rm -rf .venv .venv-newest .venv-driver .venv-tools .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
	find runner servers models datasets tests -name __pycache__ -type d -prune -exec rm -rf {} +
