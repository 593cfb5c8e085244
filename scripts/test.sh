#!/usr/bin/env bash
# Sets up, then runs every check and test. Arguments go to pytest: scripts/test.sh -k coco
#
# Each step says how long it took. The suite runs one process per core (two here), one thread each.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export OMP_NUM_THREADS=1

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
step 'tests (pytest)' pytest -n 2 "$@"
