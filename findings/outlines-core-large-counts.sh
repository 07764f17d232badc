#!/usr/bin/env bash
# outlines-core 0.2.14: a count of a JSON schema that 64 bits do not hold, such as a minLength, is taken as 0 without a word.
# Seen: {"minLength": 2**64} gives the pattern of {"minLength": 0}. Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check outlines-core==0.2.14
"$folder/venv/bin/python" -c '
from outlines_core.json_schema import build_regex_from_schema as build
none, large = (build("{\"type\": \"string\", \"minLength\": %d}" % count) for count in (0, 2**64))
print(none, large, sep="\n")
assert none == large
'
