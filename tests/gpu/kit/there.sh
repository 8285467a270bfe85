#!/usr/bin/env bash
# bash .offline/there.sh SECONDS FOLDER [further options of python -m tests.gpu]
# Installs the kit's wheels into a folder of their own and runs the GPU script for the rest of the seconds. The results
# are packed into FOLDER/results.tar.gz after every stage, so that a run that is cut off loses only what was under way.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: bash .offline/there.sh SECONDS FOLDER [further options of python -m tests.gpu]" >&2
    exit 2
fi
seconds=$1
folder=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/.."
site=$(mktemp -d)
# pip's own configuration there may pin other versions.
PIP_CONFIG_FILE=/dev/null python3 -m pip --isolated install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --root-user-action ignore --target "$site" .offline/wheels/*.whl
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# SECONDS counts what this script has taken so far.
exec python3 -m tests.gpu --seconds $((seconds - SECONDS)) --out "$site/results" --pack "$folder/results.tar.gz" "$@"
