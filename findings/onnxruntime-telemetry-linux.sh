#!/usr/bin/env bash
# onnxruntime's wheels for Linux send telemetry from 1.29 on, unless ORT_DISABLE_TELEMETRY=1 is set before it is imported.
# `import onnxruntime` alone writes a device id and an event database under ~/.cache, and looks a host up about ten seconds
# later. 1.28.0 does neither. The variable set after the import comes too late. Here every look-up is recorded and fails, so
# that nothing is sent. It runs with a fresh environment, since onnxruntime is silent on build servers. Needs g++.
# Seen: 1.28.0 leaves and calls nothing, nor does 1.32.0 with the variable; without it, or with it set late, 1.32.0 leaves
# deviceid and onnxruntime.db and calls mobile.events.data.microsoft.com. Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >lookups.cpp <<'CPP'
#include <netdb.h>
#include <cstdio>
#include <cstdlib>
extern "C" int getaddrinfo(const char* name, const char*, const addrinfo*, addrinfo**) {
  if (FILE* file = std::fopen(std::getenv("LOOKUPS"), "a")) {
    std::fprintf(file, "%s\n", name ? name : "?");
    std::fclose(file);
  }
  return EAI_FAIL;
}
CPP
g++ -shared -fPIC lookups.cpp -o lookups.so
wait='import time; time.sleep(25)'
seen() {  # seen VERSION PROGRAM [NAME=VALUE]: files that are left, hosts that are called
    local version=$1 program=$2
    shift 2
    rm -rf home calls
    mkdir home
    touch calls
    env -i PATH="$PATH" HOME="$folder/home" LD_PRELOAD="$folder/lookups.so" LOOKUPS="$folder/calls" "$@" \
        "$version/bin/python" -c "$program"
    echo "leaves: $(find home -type f -printf '%f ' | xargs -n1 | sort | xargs) calls: $(sort -u calls | xargs)"
}
for version in 1.28.0 1.32.0; do
    python3 -m venv "$version"
    "$version/bin/python" -m pip install -q --disable-pip-version-check "onnxruntime==$version" 2>/dev/null
done
old=$(seen 1.28.0 "import onnxruntime; $wait")
new=$(seen 1.32.0 "import onnxruntime; $wait")
off=$(seen 1.32.0 "import onnxruntime; $wait" ORT_DISABLE_TELEMETRY=1)
late=$(seen 1.32.0 "import os, onnxruntime; os.environ['ORT_DISABLE_TELEMETRY'] = '1'; $wait")
printf '%s\n' "1.28.0: $old" "1.32.0: $new" "1.32.0, switched off before: $off" "1.32.0, switched off after: $late"
nothing="leaves:  calls: "
loud="leaves: deviceid onnxruntime.db calls: mobile.events.data.microsoft.com"
[ "$old" = "$nothing" ] && [ "$off" = "$nothing" ] && [ "$new" = "$loud" ] && [ "$late" = "$loud" ]
