#!/bin/sh
# Measures all that runs on an NVIDIA GPU, in less than nine minutes: see docs/gpu.md.
#
#   benchmarks/gpu.sh [--out DIR] [--tiny]
#
# Writes DIR/gpu.json (runs/gpu if left out) and from it DIR/gpu.md and pictures. Nothing is downloaded or installed.
# --tiny runs everything at a tiny size on the CPU. Ends with 1 if a phase failed; the others are measured all the same.
# PYTHON names the interpreter; the repository's own environment, or else python3, if it is not set.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || python=python3
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Artifacts are checked to 1e-4, which the ten bits of TensorFloat-32 do not give.
export JAX_DEFAULT_MATMUL_PRECISION=${JAX_DEFAULT_MATMUL_PRECISION:-highest}
exec "$python" -m alohas2r.cli bench-gpu "$@"
