#!/usr/bin/env bash
# Builds the extension with CUDA, tests the ops in both of their modes, and measures ops and networks, within 8 minutes
# on a GPU machine. PYTHON: an interpreter with the package's requirements, pytest, hypothesis, setuptools, pybind11 and
# ninja. Nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PIIP_REQUIRE_CUDA=1
# The deterministic mode asks cuBLAS for it.
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8}
# Code for this GPU only: building for all of them takes several times as long.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
# Tests run beside each other where pytest-xdist is installed.
parallel=$("$PYTHON" -c 'import importlib.util as u, os; print("-n %d" % min(os.cpu_count(), 12) if u.find_spec("xdist") else "")')

echo "== build for $TORCH_CUDA_ARCH_LIST"
PIIP_CUDA=1 "$PYTHON" setup.py -q build_ext --inplace
"$PYTHON" -c 'from piip.ops._extension import describe; print(describe())'
echo "== test"
# shellcheck disable=SC2086
"$PYTHON" -m pytest -q -p no:cacheprovider $parallel tests -m cuda
if command -v compute-sanitizer >/dev/null; then
  echo "== compute-sanitizer"
  for tool in memcheck racecheck initcheck; do
    timeout 90 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$PYTHON" -m pytest -q -p no:cacheprovider tests/ops/test_deform_attn.py -k "cuda and (outside or 64_images)"
  done
fi
echo "== measure"
"$PYTHON" -m benchmarks.ops --device cuda --batches 2 16 "$@"
for options in "" "--train" "--batch 8" "--compile" "--graph"; do
  "$PYTHON" -m piip bench mask_rcnn_vit_b --against mask_rcnn_piip_tsb_1568_896_448 --device cuda $options
done
