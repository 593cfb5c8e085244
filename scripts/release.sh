#!/usr/bin/env bash
# Builds the wheel and the sdist of the version in mtpd/__init__.py into dist/, and checks both in a fresh environment.
#
#   scripts/release.sh
#
# Refuses a working tree with changes, and a version that CHANGELOG.md or CITATION.cff, or a tag of this commit, state
# differently. It publishes nothing: it prints the commands for that.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

fail() {
    echo "release: $1" >&2
    exit 1
}

version=$(sed -n "s/^__version__ = '\(.*\)'$/\1/p" mtpd/__init__.py)
[[ -n $version ]] || fail 'mtpd/__init__.py has no __version__'
[[ -z $(git status --porcelain) ]] || fail "the working tree has changes; commit them first: $(git status --short | head -3)"
changelog=$(sed -n 's/^## \([0-9][^ ]*\).*/\1/p' CHANGELOG.md | head -1)
[[ $changelog == "$version" ]] || fail "the newest version in CHANGELOG.md is $changelog, in mtpd/__init__.py $version"
citation=$(sed -n 's/^version: //p' CITATION.cff)
[[ $citation == "$version" ]] || fail "the version in CITATION.cff is $citation, in mtpd/__init__.py $version"
for tag in $(git tag --points-at HEAD 'v*'); do
    [[ $tag == "v$version" ]] || fail "this commit has the tag $tag, the version in mtpd/__init__.py is $version"
done

rm -rf dist
echo "=== building $version" >&2
uv build --quiet --out-dir dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # FILE: installs it with its dependencies into a fresh environment, and runs the programs from there
    local python=$work/venv/bin/python program
    echo "=== checking $1" >&2
    uv venv --quiet --clear --python "$(command -v python)" "$work/venv"
    uv pip install --quiet --python "$python" "$1"
    cd "$work"
    [[ $("$python" -c 'import mtpd, mtpd_extract, mtpd_train; print(mtpd.__version__)') == "$version" ]] ||
        fail "$1 installs another version than $version"
    for program in mtpd-extract mtpd-cache mtpd-train mtpd-eval mtpd-report; do
        "$work/venv/bin/$program" --help > /dev/null
    done
    "$work/venv/bin/mtpd-cache" info "$OLDPWD/tests/cache/golden/v1/int8"
    cd "$OLDPWD"
}

check "$PWD/dist/mtpd-$version-py3-none-any.whl"
check "$PWD/dist/mtpd-$version.tar.gz"
echo "dist/ holds mtpd $version; to publish it: git tag v$version && git push --tags && uv publish dist/*"
