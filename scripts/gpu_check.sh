#!/usr/bin/env bash
# Everything that needs a GPU, tested and measured in one command of at most nine minutes; see gpu_check.py.
#
#   scripts/gpu_check.sh                    writes gpu_check.json
#   scripts/gpu_check.sh --json FILE --parts kernels stream
#
# Works offline from a plain checkout, without setup.sh, where PyTorch and the other dependencies can be imported. Without
# a GPU every part runs at toy size on the CPU, which only tests the check itself.

set -euo pipefail
exec "${PYTHON:-python3}" -u "$(dirname "${BASH_SOURCE[0]}")/gpu_check.py" "$@"
