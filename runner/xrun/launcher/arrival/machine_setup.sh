# Runs on each machine of a job before the attempt (attempt.sh): bash machine_setup.sh CARGO
# Makes ~/xrun/python, an interpreter that has this very xrun and the pinned libraries. A machine that has it installs nothing.
# Ends with 2 where every machine would fail, with 75 where another one may not.
set -euo pipefail
export PYTHONSAFEPATH=1  # no file of the working directory is taken for a library
cargo=$1
wheel=$(ls "$cargo"/*.whl)
key=$(cat "$cargo/environment.key")
mkdir -p ~/xrun/environments

say() { echo "xrun: $*"; }

# The builds of torch that this machine's GPUs can use, the newest first; nothing without GPUs. Fails with 75 where none serves them.
torch_builds() { python3 "$cargo/torch_build.py"; }

builds=$(torch_builds)
backend=${builds%% *}
# A home folder may be shared by machines with other drivers.
home=~/xrun/environments/$key${backend:+-$backend}

# Runs a step, and again while it fails for want of a network: persist WHAT COMMAND. What pip knows of a server that fails it
# says in its log alone.
persist() {
  local what=$1 step=$2 printed code seconds
  printed=$(mktemp)
  export PIP_LOG=$printed.pip
  for seconds in 5 15 45 135 0; do
    rm -f "$PIP_LOG"
    set +e  # which a condition would do to all of the step
    (set -e; "$step") 2>&1 | tee "$printed"
    code=${PIPESTATUS[0]}
    set -e
    [ "$code" -ne 0 ] || break
    python3 "$cargo/failure.py" "$what" "$seconds" "$printed" "$PIP_LOG"
    sleep "$seconds"
  done
  rm -f "$printed" "$PIP_LOG"
}

# Makes FOLDER/python run a PROGRAM in an environment: interpreter FOLDER PROGRAM NAME=VALUE...
interpreter() {
  local folder=$1 program=$2
  shift 2
  { printf '#!/bin/sh\n'; printf 'export %s\n' "$@"; printf 'exec %s "$@"\n' "$program"; } > "$folder/python.new"
  chmod +x "$folder/python.new"
  mv "$folder/python.new" "$folder/python"
}

install() {
  local uv
  uv=$(command -v uv || echo ~/.local/bin/uv)
  if [ -x "$uv" ]; then
    "$uv" venv --quiet --seed --clear --python 3.11 "$home/venv"
    # By its name, since `auto` is what this uv makes of this machine.
    if [ -n "$backend" ]; then export UV_TORCH_BACKEND=$backend; fi
    "$uv" pip install --quiet --python "$home/venv/bin/python" -c "$cargo/container.txt" "xrun[train] @ file://$wheel"
  else
    python3 -m venv --clear "$home/venv"
    if [ -n "$backend" ]; then export PIP_EXTRA_INDEX_URL="https://download.pytorch.org/whl/$backend ${PIP_EXTRA_INDEX_URL:-}"; fi
    "$home/venv/bin/python" -m pip install -q --disable-pip-version-check -c "$cargo/container.txt" "xrun[train] @ file://$wheel"
  fi
  interpreter "$home" "$home/venv/bin/python" "PATH=$home/venv/bin:\$PATH"
}

# Nodes of a Slurm cluster have one home folder: the first installs, the others wait for it.
exec 9> ~/xrun/environments/lock
if command -v flock > /dev/null; then flock 9; fi
if [ ! -e "$home/ready" ]; then
  started=$(date +%s)
  mkdir -p "$home"
  if python3 "$cargo/has_pins.py" "$cargo/container.txt" $builds; then
    # An image that brings the libraries along: only xrun itself is put in front of them.
    python3 -m zipfile -e "$wheel" "$home/site"
    interpreter "$home" "$(command -v python3)" "PYTHONPATH=$home/site\${PYTHONPATH:+:\$PYTHONPATH}"
    say "this machine has the pinned libraries; xrun is ready after $(($(date +%s) - started)) s."
  else
    persist "the pinned libraries" install
    say "installed the pinned libraries${backend:+, torch for $backend,} in $(($(date +%s) - started)) s."
  fi
  touch "$home/ready"
fi

# Puts libraries of exact versions into the folder of the recipe's.
add() {
  local uv options=(--quiet --no-deps --only-binary :all: --target "$added/site" "$@")
  uv=$(command -v uv || echo ~/.local/bin/uv)
  if [ -x "$uv" ]; then
    "$uv" pip install --python "$("$home/python" -c 'import sys; print(sys.executable)')" "${options[@]}"
  else
    "$home/python" -m pip install --disable-pip-version-check "${options[@]}"
  fi
}

install_requirements() {
  local locked=$cargo/requirements.txt twins='^(torchvision|torchaudio)==' build=cu130
  rm -rf "$added/site"
  if grep -qE "$twins" "$locked"; then build=$("$home/python" "$cargo/has_pins.py" build); fi
  if [ "$build" = cu130 ]; then
    add --require-hashes -r "$locked"
    return
  fi
  # What is built for each build of torch comes from that build's index, in the locked version: the hashes are of PyPI's build.
  awk -v twins="$twins" '/^[^ ]/ { twin = $0 ~ twins } !twin' "$locked" > "$added/others.txt"
  sed -nE "s/($twins[^ ]+).*/\1/p" "$locked" > "$added/twins.txt"
  if [ -s "$added/others.txt" ]; then add --require-hashes -r "$added/others.txt"; fi
  export UV_TORCH_BACKEND=$build PIP_EXTRA_INDEX_URL="https://download.pytorch.org/whl/$build ${PIP_EXTRA_INDEX_URL:-}"
  add -r "$added/twins.txt"
}

# The recipe's libraries lie beside the pins, each list of versions in a folder of its own: runs share the pins, and a home
# folder, and none takes another one's versions away.
added=$home
if [ -e "$cargo/requirements.txt" ]; then
  added=$home/requirements/$(sha256sum < "$cargo/requirements.txt" | cut -c 1-16)
  if [ ! -e "$added/ready" ]; then
    started=$(date +%s)
    mkdir -p "$added"
    persist "the recipe's requirements" install_requirements
    interpreter "$added" "$home/python" "PATH=$added/site/bin:\$PATH" "PYTHONPATH=$added/site\${PYTHONPATH:+:\$PYTHONPATH}"
    touch "$added/ready"
    say "installed the recipe's requirements in $(($(date +%s) - started)) s."
  fi
fi
ln -sfn "$added/python" ~/xrun/python
exec 9>&-

# `python` is the run's, with its libraries; `pip` installs beside the pins.
recipe_setup() {
  cd ~
  PATH=$added:$home/venv/bin:$added/site/bin:$PATH VIRTUAL_ENV=$home/venv env -u PYTHONSAFEPATH bash -e "$cargo/recipe_setup.sh"
}

# What the recipe adds, once on each machine.
if [ -e "$cargo/recipe_setup.sh" ]; then
  done_file=$added/recipe-$(cksum < "$cargo/recipe_setup.sh" | tr ' ' '-')
  if [ ! -e "$done_file" ]; then
    persist "the recipe's setup" recipe_setup
    touch "$done_file"
  fi
fi
