#!/usr/bin/env bash
# Rebuilds data/emoji-captions/captions.tsv from the pinned package; needs npm and python3.
#   tools/emoji-captions.sh            installs the package into target/emoji-captions and writes the file
#   tools/emoji-captions.sh --check    compares the committed file with a rebuild
# EMOJI_ID_PACKAGES names a `node_modules` folder that already holds the package, as for tools/emoji-id.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=${EMOJI_ID_PACKAGES:-}
if [ -z "$packages" ]; then
    prefix=target/emoji-captions
    mkdir -p "$prefix"
    npm install --prefix "$prefix" --no-save --no-package-lock --ignore-scripts --no-audit --no-fund \
        emojibase-data@17.0.0
    packages=$prefix/node_modules
fi
python3 tools/emoji_captions.py "$packages" "$@"
