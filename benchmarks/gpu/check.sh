#!/usr/bin/env bash
# Whether the package is right and fast on this GPU: every part, or those that are named.
#   benchmarks/gpu/check.sh [right screen attention speed whole training] [-- options of check.py]
# Try it on a CPU first: DEVICE=cpu SHAPES=tiny CELLS=8 benchmarks/gpu/check.sh
set -uo pipefail
cd "$(dirname "$0")/../.."
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(right screen attention speed whole training)
for part in "${parts[@]}"; do
  "${PYTHON:-python3}" benchmarks/gpu/check.py "$part" --device "${DEVICE:-cuda}" --shapes ${SHAPES:-70m 1b 3b} \
    --cells "${CELLS:-1024}" || echo "part $part failed"
done
