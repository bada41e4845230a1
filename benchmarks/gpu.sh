#!/usr/bin/env bash
# Fifteen minutes on a GPU machine: lays the tree and runs the parts of gpu_run.py, which takes the same arguments.
#
#   benchmarks/gpu.sh --data DATA.yaml --peers MAMBA_SSM CAUSAL_CONV1D
#   benchmarks/gpu.sh --dry-run --data DATA.yaml     # tiny, on a CPU, to see that nothing is mistyped
#
# The peers are source folders (csrc is enough): `pip download --no-binary :all: --no-deps --no-build-isolation NAME`
# brings them. Logs and results go to $OUT, or to build/gpu. Nothing is fetched. Called again it goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
"$python" -m patches setup # from the cache: nothing is fetched
exec "$python" benchmarks/gpu_run.py "$@"
