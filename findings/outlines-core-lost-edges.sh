#!/usr/bin/env bash
# outlines-core 0.2.14: Index has no transition from a state in which a text may end to one in which it may not. The text of
# "(ab)+" can then not be written as a, b, a, b, nor that of "[0-9]+(\.[0-9]+)?" as 1, ., 5: the pattern's other texts vanish
# without a word, unless a single token leads from one final state to the next. Behind a byte that no text has, no state is final
# before it, and nothing is lost.
# Seen: the second a of "(ab)+" is not allowed; with "\x00" behind the pattern it is. Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check outlines-core==0.2.14
allowed=$("$folder/venv/bin/python" -c '
from outlines_core import Index, Vocabulary
vocabulary = Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
for pattern in ("(ab)+", r"(ab)+\x00", r"[0-9](\.[0-9])?", r"[0-9](\.[0-9])?\x00"):
    index = Index(pattern, vocabulary)
    state = index.get_initial_state()
    for byte in b"ab" if "a" in pattern else b"1":
        state = index.get_next_state(state, byte)
    print(sorted(index.get_allowed_tokens(state)))
')
echo "$allowed"
[ "$allowed" = "[256]
[0, 97]
[256]
[0, 46]" ]
