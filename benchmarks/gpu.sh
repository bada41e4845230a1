#!/usr/bin/env bash
# One call on a GPU machine, in under ten minutes: build the peers, check, benchmark. Leaves gpu.json, gpu_amp.json, a
# short table and the logs.
#
#   benchmarks/gpu.sh [MAMBA_SSM [CAUSAL_CONV1D [DATA.yaml]]]
#
#     MAMBA_SSM, CAUSAL_CONV1D   the peers' source folders (csrc is enough); "" or nothing: no peer to compare with.
#                                `pip download --no-binary :all: --no-deps --no-build-isolation NAME` brings them
#     DATA.yaml                  a data set, to train on in float32, fp16 and bf16; nothing: no such training
#
#   benchmarks/gpu.sh --dry-run [DATA.yaml]    the same on a CPU, tiny, to see that nothing is mistyped
#
# Results go to $OUT, or to benchmarks/results. Nothing is fetched; the tree must have been laid (patches/README.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
begin=$SECONDS
limit=570      # seconds for all of it
patience=200   # seconds from the beginning that the peers' builds may take
export PYTHONUNBUFFERED=1 YOLO_OFFLINE=true
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
step() { printf '\n== %s (%d s)\n' "$*" "$((SECONDS - begin))"; }
left() { echo $((limit - (SECONDS - begin) > 20 ? limit - (SECONDS - begin) : 20)); }

if [ "${1:-}" = --dry-run ]; then
  step "checks that need no GPU"
  "$python" -m pytest -q -p no:cacheprovider tests/test_gpu_backend.py -k "adapter or division or accepts or recipe"
  step "benchmark, tiny"
  TRITON_INTERPRET=1 "$python" benchmarks/gpu.py --dry-run
  if [ -n "${2:-}" ]; then
    step "mixed precision, tiny"
    "$python" benchmarks/gpu_amp.py "$2" --dry-run
  fi
  exit
fi

"$python" -m patches setup  # from the cache: nothing is fetched
mkdir -p "$out"
build=$PWD/build/peer
peers=()
for source in "${1:-}" "${2:-}"; do
  [ -n "$source" ] || continue
  name=$(basename "$source")
  step "build $name for one GPU, beside the checks"
  mkdir -p "$build/$name"
  timeout "$patience" "$python" benchmarks/gpu.py --build-peer "$source" --into "$build/$name" >"$out/$name.log" 2>&1 &
  peers+=("$!:$name")
done

failed=0
# Several tests at once where possible: most of their time is compiling.
workers=$("$python" -c "import xdist" 2>/dev/null && echo "-n 6" || true)
check() {  # SECONDS SELECTION; interrupted, pytest still says what failed
  # shellcheck disable=SC2086  # no word, or two
  timeout -s INT -k 15 "$1" "$python" -m pytest -q -p no:cacheprovider $workers -m gpu tests/test_gpu_backend.py \
    -k "$2" 2>&1 | tee -a "$out/checks.log" | tail -n 40 || failed=1
}
sanitize() {  # TOOL; every allocation its own, so that none hides an access beyond it
  step "compute-sanitizer $1"
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not here: no $1"
  elif [ "$(left)" -lt 60 ]; then
    echo "no time is left for $1"
  else
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "$(($(left) < 100 ? $(left) : 100))" compute-sanitizer --tool "$1" \
      --error-exitcode 9 "$python" benchmarks/gpu.py --one-case 2>&1 | tee -a "$out/sanitizer.log" | tail -n 3 || failed=1
  fi
}
rm -f "$out/checks.log" "$out/sanitizer.log"
step "checks of our kernels, while the peers are built"
check 100 "not cuda and not lengths"
sanitize memcheck

for peer in ${peers[@]+"${peers[@]}"}; do
  name=${peer#*:}
  step "wait for $name"
  if wait "${peer%%:*}"; then
    PYTHONPATH=$build/$name:$PYTHONPATH
  else
    tail -n 20 "$out/$name.log"
    echo "$name could not be built in $patience s: benchmarking without it"
  fi
done

# The benchmark before the slow checks: it holds every subject to float64 itself, and gives a wrong one no number.
step "benchmark"
amp=$([ -n "${3:-}" ] && echo 110 || echo 0)
seconds=$(($(left) - amp - 30))  # a row that has begun is finished
"$python" benchmarks/gpu.py --out "$out/gpu.json" --deadline "$((seconds > 40 ? seconds : 40))" | tee "$out/gpu.txt" ||
  failed=1
if [ -n "${3:-}" ]; then
  step "mixed precision"
  "$python" benchmarks/gpu_amp.py "$3" --out "$out/gpu_amp.json" --deadline "$(($(left) - 50))" |
    tee "$out/gpu_amp.txt" || failed=1
fi

sanitize racecheck
step "checks at the model's lengths, and of the adapter where it is built"
check "$(left)" "lengths or cuda"
step "done$([ "$failed" = 0 ] || echo ", with a failed check")"
exit "$failed"
