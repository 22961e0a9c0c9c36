#!/usr/bin/env bash
# What a GPU gives, in one command under 8 minutes: see gpu.py. Needs PyTorch and transformers alone.
#   benchmarks/gpu.sh                              # all parts
#   benchmarks/gpu.sh --parts draws,equal          # some
#   benchmarks/gpu.sh --device cpu --shapes tiny   # every part on a CPU, to see that it runs
cd "$(dirname "$0")/.." && PYTHONPATH="$PWD" exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
