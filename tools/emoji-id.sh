#!/usr/bin/env bash
# Rebuilds data/emoji-id/emoji-id.bin, bit for bit, from the pinned packages; needs npm and a Rust toolchain.
#
#   tools/emoji-id.sh            installs the packages into target/emoji-id and writes the pack and its SHA256SUMS
#   tools/emoji-id.sh --check    rebuilds in memory and compares with the committed pack
#
# Other arguments go to the builder, such as `--sheets DIR` for contact sheets. EMOJI_ID_PACKAGES names a
# `node_modules` folder that already holds the packages.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=${EMOJI_ID_PACKAGES:-}
if [ -z "$packages" ]; then
    prefix=target/emoji-id
    mkdir -p "$prefix"
    # Only data is used: no scripts of packages run, and nothing is written into a manifest.
    npm install --prefix "$prefix" --no-save --no-package-lock --ignore-scripts --no-audit --no-fund \
        @iconify-json/noto@1.2.9 \
        @iconify-json/noto-v1@1.2.5 \
        @iconify-json/twemoji@1.2.5 \
        @iconify-json/fluent-emoji-flat@1.2.6 \
        @iconify-json/fluent-emoji-high-contrast@1.2.6 \
        @iconify-json/emojione@1.2.3 \
        @iconify-json/emojione-monotone@1.2.1 \
        @iconify-json/fxemoji@1.2.2 \
        emojibase-data@17.0.0
    packages=$prefix/node_modules
fi

cargo run --locked -p consonance-emoji-id -- --packages "$packages" "$@"
case " $* " in
*" --check "*) (cd data/emoji-id && sha256sum --check SHA256SUMS) ;;
*) (cd data/emoji-id && sha256sum emoji-id.bin > SHA256SUMS) ;;
esac
