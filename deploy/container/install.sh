#!/bin/sh
# The steps of the Containerfile in a Debian 13 root: `install.sh system SIZE`, or `install.sh build SIZE` with the
# source in /source. SIZE is an extra of re4-retrieval: serve, or cpu for everything.
set -eu
export DEBIAN_FRONTEND=noninteractive

system() {
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends python3 ca-certificates "$@"
    rm -rf /var/lib/apt/lists/*
    useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin re4
}

case "$1" in
system)
    # Training compiles its kernels for the CPU that it runs on.
    if [ "$2" = serve ]; then system; else system gcc libc6-dev; fi
    ;;
build)
    system python3-venv
    python3 -m venv /opt/re4
    /opt/re4/bin/pip install --quiet --no-cache-dir --upgrade pip
    # PyTorch's build for the CPU, where its own index can be reached: the package index has the one for CUDA, 6 GB.
    [ "$2" = serve ] || /opt/re4/bin/pip install --quiet --no-cache-dir --no-deps --require-hashes \
        --index-url https://download.pytorch.org/whl/cpu --retries 0 --requirement /source/locks/torch.txt ||
        echo "PyTorch's build for CUDA follows"
    /opt/re4/bin/pip install --quiet --no-cache-dir --constraint /source/constraints.txt "/source[$2]"
    # pip is of no use in a root that cannot be written.
    /opt/re4/bin/pip uninstall --quiet --yes pip
    ;;
*)
    echo "usage: install.sh system|build SIZE" >&2
    exit 2
    ;;
esac
