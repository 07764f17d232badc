#!/usr/bin/env bash
# @huggingface/tokenizers 0.2.0 (JavaScript) and tokenizers 0.23.3 (Python) read one tokenizer.json differently: the
# pre-tokenizer "Digits" isolates every number of Unicode in Python (², ٣, Ⅷ), and 0 to 9 alone in JavaScript. So the ids of a
# text differ between a page and a server that share the file.
# Seen: Python [0, 1], JavaScript [2] for "a²"; both [0, 3] for "a7". Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check tokenizers==0.23.3
npm init -y >/dev/null
npm install --silent --no-audit --no-fund @huggingface/tokenizers@0.2.0
cat >tokenizer.json <<'JSON'
{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "post_processor": null,
 "decoder": null, "pre_tokenizer": {"type": "Digits", "individual_digits": true},
 "model": {"type": "WordLevel", "vocab": {"a": 0, "²": 1, "a²": 2, "7": 3, "[UNK]": 4}, "unk_token": "[UNK]"}}
JSON
cat >read.mjs <<'JS'
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";
const tokenizer = new Tokenizer(JSON.parse(readFileSync("tokenizer.json", "utf8")), {});
console.log(JSON.stringify(["a²", "a7"].map((text) => tokenizer.encode(text).ids)));
JS
python=$(venv/bin/python -c "
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file('tokenizer.json')
print(str([tokenizer.encode(text).ids for text in ('a²', 'a7')]).replace(' ', ''))")
javascript=$(node read.mjs)
echo "Python $python, JavaScript $javascript"
[ "$python" = "[[0,1],[0,3]]" ] && [ "$javascript" = "[[2],[0,3]]" ]
