"""Writes data/emoji-captions/captions.tsv from emojibase-data: what an emoji is called in several languages, and its tags.

Run by tools/emoji-captions.sh. A line an emoji, ordered by code point: the code points in lower-case hexadecimal without
fe0f, as in Emoji-ID; the English tags, joined by `,`; then a label for every language of the header line.
"""

import json
import pathlib
import sys

VERSION = "17.0.0"
# Languages in Latin script, so that one set of letter groups serves all.
LANGUAGES = ["en", "de", "fr", "es", "it", "pt", "nl", "sv", "nb", "da", "fi", "pl"]


def main():
    packages, check = pathlib.Path(sys.argv[1]), "--check" in sys.argv[2:]
    folder = packages / "emojibase-data"
    version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
    if version != VERSION:
        sys.exit(f"{folder}: version {version}, expected {VERSION}")
    labels, tags = {}, {}
    for language in LANGUAGES:
        for emoji in json.loads((folder / language / "data.json").read_text(encoding="utf-8")):
            # Components (skin tones, letters) are in no group, or in group 2.
            if emoji.get("group") in (None, 2):
                continue
            parts = [part.lower() for part in emoji["hexcode"].split("-") if part.lower() != "fe0f"]
            code = "-".join(parts)
            labels.setdefault(code, {})[language] = emoji["label"]
            if language == "en":
                tags[code] = sorted(set(emoji.get("tags") or []))
    lines = ["code\ttags\t" + "\t".join(LANGUAGES)]
    for code in sorted(labels):
        of_code = [labels[code].get(language, "") for language in LANGUAGES]
        if all(of_code) and tags.get(code):
            fields = [code, ",".join(tags[code]), *of_code]
            assert not any("\t" in field or "\n" in field for field in fields), code
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
