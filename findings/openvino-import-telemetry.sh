#!/usr/bin/env bash
# openvino 2026.4.1 with the openvino-telemetry 2025.2.0 that it asks for, Linux: the import of the package alone, before anything
# is read or compiled, writes an identity and a count of runs into the home and sends an event, without a question; its documents
# speak of the converter's tools. Where the second package cannot be imported, the first works and writes nothing.
# Seen: two files in an empty home after the import, none with the second package out of reach. Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy
mkdir "$folder/home" "$folder/silent"
env -u CI HOME="$folder/home" "$folder/venv/bin/python" -c "import openvino"
env -u CI HOME="$folder/silent" "$folder/venv/bin/python" -c "import sys; sys.modules['openvino_telemetry'] = None; import openvino"
(cd "$folder/home" && find . -type f | sort)
[ "$(find "$folder/home" -type f | wc -l)" = 2 ]
[ "$(find "$folder/silent" -type f | wc -l)" = 0 ]
