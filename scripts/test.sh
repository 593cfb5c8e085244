#!/usr/bin/env bash
# Sets up, then runs the checks and tests. Other arguments go to pytest.
#
#   scripts/test.sh            all but the slow tests (stress, torchrun, recipes, benchmarks at toy size)
#   scripts/test.sh --all      everything, as continuous integration does
#   scripts/test.sh -k coco
#
# Each step prints how long it took. The suite runs one process per core (two here), one thread each.

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
step 'types (mypy)' mypy
step 'walls between packages (import-linter)' lint-imports --no-logo
step 'tests (pytest)' pytest -n 2 -m "$selection" "$@"
