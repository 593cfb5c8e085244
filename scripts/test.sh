#!/usr/bin/env bash
# Sets up, then runs the checks and tests. Other arguments go to pytest.
#
#   scripts/test.sh            all but the slow tests, in about five minutes on two cores
#   scripts/test.sh --all      with the slow tests: stress, torchrun, recipes, benchmarks at toy size
#   scripts/test.sh -k coco
#
# Each step prints how long it took. The suite runs two processes of one thread each; all tests of a file run in the same one,
# so that its fixtures are made once.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export OMP_NUM_THREADS=1
selection='not slow'
if [[ ${1:-} == --all ]]; then
    selection=''
    shift
fi

step() { # NAME COMMAND...
    local name=$1 start=$SECONDS
    shift
    echo "=== $name"
    "$@" || { echo "=== $name FAILED after $((SECONDS - start)) s" >&2; exit 1; }
    echo "=== $name took $((SECONDS - start)) s"
}

step 'style (ruff)' ruff check .
step 'format (ruff)' ruff format --check .
step 'types (mypy)' mypy
step 'imports between packages (import-linter)' lint-imports --no-logo
step 'tests (pytest)' pytest -n 2 --dist loadfile -m "$selection" "$@"
