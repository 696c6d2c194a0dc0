#!/usr/bin/env bash
# Cargo's runner after tools/cuda-home.sh: starts a program where it finds the libraries of .cuda/. The stub of the
# driver is offered only where there is no driver, so that a machine with a GPU uses its own.
set -euo pipefail
libraries=$(cd "$(dirname "$0")/.." && pwd)/.cuda/lib
if [ -d "$libraries" ]; then
    driver=0
    for folder in ${LD_LIBRARY_PATH//:/ } /usr/lib/wsl/lib; do
        [ ! -e "$folder/libcuda.so.1" ] || driver=1
    done
    if PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2> /dev/null | grep -q 'libcuda\.so\.1 '; then driver=1; fi
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries
    [ "$driver" -eq 1 ] || LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$libraries/stubs
    export LD_LIBRARY_PATH
fi
exec "$@"
