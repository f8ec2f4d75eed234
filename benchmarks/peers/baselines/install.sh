#!/usr/bin/env bash
# Everything that the peers need, each in an environment of its own; whatever cannot be installed is reported and left out.
# Usage: install.sh PYTHON
set -u
python=$1
here=$(cd "$(dirname "$0")" && pwd)

environment() { # NAME OF WHAT
    local folder=$here/$1 requirements=$here/$2
    { test -x "$folder/bin/python" || "$python" -m venv "$folder"; } &&
        "$folder/bin/pip" install --quiet --upgrade pip &&
        "$folder/bin/pip" install --quiet --requirement "$requirements" &&
        echo "installed: $3" || { echo "skipped: $3 (see above)" >&2; return 1; }
}

postgres() {
    local programs=/usr/lib/postgresql/17/bin/postgres extension=/usr/share/postgresql/17/extension/vector.control
    local what="PostgreSQL 17 with pgvector, for the two-hop peer"
    local command="apt-get install postgresql-17 postgresql-17-pgvector"
    if ! { test -e $programs && test -e $extension; } && test "$(id -u)" = 0 && command -v apt-get >/dev/null; then
        { apt-get update --quiet=2 &&
            DEBIAN_FRONTEND=noninteractive $command --yes --quiet=2 --no-install-recommends; } >&2
    fi
    test -e $programs && test -e $extension && echo "installed: $what" ||
        echo "skipped: $what. Where it is packaged: $command" >&2
}

environment .venv requirements.txt "the engines of re4 bench index"
environment .venv-web requirements-web.txt "the FastAPI and two-hop services"
environment .venv-triton requirements-triton.txt "NVIDIA Triton by pytriton" &&
    cp "$here/servers/triton_sitecustomize.py" \
        "$("$here/.venv-triton/bin/python" -c 'import site; print(site.getsitepackages()[0])')/sitecustomize.py"
environment .venv-rectools requirements-rectools.txt "SASRec and eSASRec of RecTools, for re4 bench quality"
postgres
exit 0
