#!/usr/bin/env bash
# bash .offline/there.sh SECONDS FOLDER
# Installs the kit's wheels into a folder of their own and runs the GPU script for the rest of the seconds. The results
# are packed into FOLDER/results.tar.gz after every stage, so that a run that is cut off loses only what was under way.
set -eu
if [ $# -ne 2 ]; then
    echo "usage: bash .offline/there.sh SECONDS FOLDER" >&2
    exit 2
fi
cd "$(dirname "$0")/.."
site=$(mktemp -d)
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$site" .offline/wheels/*.whl
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# SECONDS counts what this script has taken so far.
exec python3 -m tests.gpu --seconds $(($1 - SECONDS)) --out "$site/results" --pack "$2/results.tar.gz"
