#!/usr/bin/env bash
# One call on a GPU machine, in under ten minutes: build the peer, check, benchmark. Leaves gpu.json and a short table.
#
#   benchmarks/gpu.sh [MAMBA_SSM_SOURCE]     mamba-ssm's source folder (csrc/selective_scan is enough); without it
#                                            there is no peer to compare with
#   benchmarks/gpu.sh --dry-run              the same on a CPU, tiny, to see that nothing is mistyped
#
# Results go to $OUT, or to benchmarks/results. Nothing is fetched; the tree must have been laid (patches/README.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
begin=$SECONDS
export PYTHONUNBUFFERED=1 YOLO_OFFLINE=true
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
step() { printf '\n== %s (%d s)\n' "$*" "$((SECONDS - begin))"; }

if [ "${1:-}" = --dry-run ]; then
  step "checks that need no GPU"
  "$python" -m pytest -q -p no:cacheprovider tests/test_gpu_backend.py -k "adapter or division or accepts"
  step "benchmark, tiny"
  TRITON_INTERPRET=1 "$python" benchmarks/gpu.py --dry-run
  exit
fi

"$python" -m patches setup  # from the cache: nothing is fetched
mkdir -p "$out"
build=$PWD/build/peer
if [ -n "${1:-}" ]; then
  step "build mamba-ssm's scan for sm_90, beside the checks"
  "$python" benchmarks/gpu.py --build-peer "$1" --into "$build" >"$out/peer.log" 2>&1 &
  peer=$!
fi

step "checks of our kernels"
"$python" -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu_backend.py -k "not cuda"

if [ -n "${peer:-}" ]; then
  step "wait for the build"
  if wait "$peer"; then
    export PYTHONPATH=$build:$PYTHONPATH
    step "checks of the adapter"
    "$python" -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu_backend.py -k cuda
  else
    tail -n 20 "$out/peer.log"
    echo "the peer could not be built: benchmarking without it"
  fi
fi

step "benchmark"
"$python" benchmarks/gpu.py --out "$out/gpu.json" --deadline $((560 - (SECONDS - begin))) | tee "$out/gpu.txt"
step "done"
