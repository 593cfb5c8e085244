#!/usr/bin/env bash
# Sets up .venv in this checkout, with mtpd installed editable and the tools of development.
#
#   scripts/setup.sh           run by hand, or
#   source scripts/setup.sh    by another script: then .venv is active and the working folder is the checkout
#
# Needs python3 (3.11 or newer) with its venv module, and a package index the first time. PYTHON names another python3.
# It does nothing, in no time, while pyproject.toml, this script and the place of the checkout stay the same. The install
# maps the import names mtpd, mtpd_extract and mtpd_train to the folders, so a new file or folder needs no new run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

setup_environment() {
    local python=${PYTHON:-python3} stamp=.venv/.mtpd-setup wanted
    wanted="$(pwd) $(cat pyproject.toml scripts/setup.sh | cksum)"
    if [[ -x .venv/bin/mtpd-train && -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
        return
    fi
    # A venv knows its own path, so one that was moved or copied here, or left half made, is made again.
    if [[ $(.venv/bin/python -c 'import pip, sys; print(sys.prefix)' 2> /dev/null) != "$PWD/.venv" ]] ||
        ! grep -qs "^#!$PWD/.venv/" .venv/bin/pip; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "setup: mtpd needs Python 3.11 or newer, $python is $("$python" -V 2>&1); name another in PYTHON" >&2
            return 1
        }
        echo "setup: making .venv with $("$python" -V)" >&2
        "$python" -m venv --clear .venv
    fi
    # uv links packages from its cache, where pip would copy several GB of PyTorch into each checkout.
    [[ -x .venv/bin/uv ]] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
    echo 'setup: installing mtpd and what it needs into .venv' >&2
    VIRTUAL_ENV="$PWD/.venv" .venv/bin/uv pip install --python .venv/bin/python --editable '.[dev]'
    # mypy names modules after folders: it finds the packages in extract/ and train/ under these names.
    mkdir -p .venv/links
    ln -sfn ../../extract .venv/links/mtpd_extract
    ln -sfn ../../train .venv/links/mtpd_train
    echo "$wanted" > "$stamp"
}

setup_environment
source .venv/bin/activate
