#!/usr/bin/env bash
# Makes .venv, the environment of this clone, and installs medgrpo in it; does nothing when that is up to date.
#
#   bash scripts/env.sh              what training needs
#   bash scripts/env.sh dev,bench    and these extras of pyproject.toml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras="${1:-}"

# An environment of the same files, in the same place, with at least these extras.
state="$(cat pyproject.toml constraints.txt | cksum) $PWD"
stamp=.venv/medgrpo-installed
if [ -f "$stamp" ] && grep -qxF "$state [$extras]" "$stamp" && .venv/bin/python -c "" 2>/dev/null; then
    exit 0
fi

# Run each candidate: a name in the path may be a stub, and some systems leave out ensurepip.
usable='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
if ! .venv/bin/python -c "$usable" 2>/dev/null || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=""
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c "$usable" 2>/dev/null; then
            python="$candidate"
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "scripts/env.sh: no Python 3.11, 3.12 or 3.13 with venv and ensurepip was found; install one" >&2
        exit 1
    fi
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

target=".${extras:+[$extras]}"
echo "installing medgrpo ${extras:+with $extras }in .venv; the first time PyTorch is downloaded, which takes a while"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$target"
# A larger set of extras serves every request for a smaller one that was made before, or for none.
grep -sF "$state [" "$stamp" > "$stamp.new" || true
printf '%s\n' "$state [$extras]" "$state []" >> "$stamp.new"
mv "$stamp.new" "$stamp"
