"""Writes data/emoji-captions/captions.tsv from emojibase-data: what an emoji is called in every locale, and its tags.

Run by tools/emoji-captions.sh. A line an emoji, ordered by code point: the code points in lower-case hexadecimal without
fe0f, as in Emoji-ID; the English tags, joined by `,`; then a label for every locale of the header line. Version 17.0.0 has
tags and all 28 labels of every emoji with a group, so nothing is left out for a gap; a gap would be an error, since neither
fewer emoji nor a label of another language should come unnoticed.
"""

import json
import pathlib
import sys

VERSION = "17.0.0"
# All locales of the package, English first.
LOCALES = (
    "en bn da de en-gb es es-mx et fi fr hi hu it ja ko lt ms nb nl pl pt ru sv th uk vi zh zh-hant".split()
)


def main():
    packages, check = pathlib.Path(sys.argv[1]), "--check" in sys.argv[2:]
    folder = packages / "emojibase-data"
    version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
    if version != VERSION:
        sys.exit(f"{folder}: version {version}, expected {VERSION}")
    there = {path.parent.name for path in folder.glob("*/data.json")}
    if there != set(LOCALES):
        sys.exit(f"{folder}: locales {' '.join(sorted(there))}, expected {' '.join(sorted(LOCALES))}")
    labels, tags = {}, {}
    for locale in LOCALES:
        for emoji in json.loads((folder / locale / "data.json").read_text(encoding="utf-8")):
            # Components (skin tones, letters) are in no group, or in group 2.
            if emoji.get("group") in (None, 2):
                continue
            parts = [part.lower() for part in emoji["hexcode"].split("-") if part.lower() != "fe0f"]
            code = "-".join(parts)
            labels.setdefault(code, {})[locale] = emoji.get("label", "")
            if locale == "en":
                tags[code] = sorted(set(emoji.get("tags") or []))
    lines = ["code\ttags\t" + "\t".join(LOCALES)]
    for code in sorted(labels):
        missing = [locale for locale in LOCALES if not labels[code].get(locale)]
        if missing or not tags.get(code):
            sys.exit(f"{folder}: {code} has no {'label in ' + ' '.join(missing) if missing else 'tag'}")
        fields = [code, ",".join(tags[code]), *(labels[code][locale] for locale in LOCALES)]
        if any("\t" in field or "\n" in field for field in fields):
            sys.exit(f"{folder}: {code} has a label with a tab or a line break")
        lines.append("\t".join(fields))
    text = "\n".join(lines) + "\n"
    path = pathlib.Path(__file__).resolve().parents[1] / "data" / "emoji-captions" / "captions.tsv"
    if check:
        if path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path}: differs from a rebuild")
    else:
        path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {len(lines) - 1} emoji, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
