#!/usr/bin/env bash
# On a machine with an NVIDIA card, in a quarter of an hour at most: whether graphs for CUDA are right there, and how fast they are at 8B
# beside torch in bfloat16. Every step has a limit of its own and leaves its file in OUT, whatever becomes of the others.
#
#   bash bench/speed/card.sh OUT [SHAPE]      # in the root of the project; OUT and SHAPE (8b) as you like
#
# Needs onnxruntime-gpu 1.31 or newer, torch with CUDA, onnx, safetensors, tokenizers, pillow; 25 GB of disk for SHAPE 8b.
set -uo pipefail
out=$(mkdir -p "${1:?give a folder for the records}" && cd "$1" && pwd)
shape=${2:-8b}
python=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
work=$out/work
step() {  # step SECONDS NAME COMMAND...: runs it within its limit, and goes on
    local limit=$1 name=$2 begun=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1
    echo "== $name: exit $? after $((SECONDS - begun)) s"
    tail -n 12 "$out/$name.txt"
}
bench="$python -m mmada_lite bench latency --device cuda --work $work --force"

# 1. What the card is, and by which operators it attends fastest: kept, so that the bundles below attend so.
step 60 attention $python -c '
import json
from mmada_lite.ort import attention_forms, nvidia
from mmada_lite.ort.session import onnxruntime_package
times, left_out = attention_forms.measure()
print(nvidia.cards(), nvidia.version(), onnxruntime_package().__version__, attention_forms.keep(times))
print(json.dumps({"milliseconds": times, "left_out": left_out, "order": attention_forms.order(times)}))'

# 2. Whether captured steps write what a CPU writes: the row "agreement".
for precision in fp16 int8 int4; do
    step 60 "agreement-$precision" $bench --shape tiny --precision $precision --tasks understanding --caches dual --quick \
        -o "$out/agreement-$precision.json"
done

# ... and whether weights that we packed give the ids of those that onnxruntime packs itself, which are the CPU provider's.
step 60 packed $python -c "
import mmada_lite
from mmada_lite.export.bundle import export_checkpoint
for precision in ('int4', 'int8'):
    ids = {}
    for packed, device in ((False, 'cpu'), (False, 'cuda'), (True, 'cuda')):
        folder = export_checkpoint('train/shipped/emoji', '$work/emoji', precision=precision, target='cuda', packed=packed, force=True)
        model = mmada_lite.load(folder, device=device)
        ids[packed, device] = [model.chat(f'what is {n} + 8?').result().ids.tolist() for n in range(8)]
    print(precision, 'packed gives the same ids:', ids[True, 'cuda'] == ids[False, 'cuda'])
    print(precision, 'the ids of a CPU:', ids[False, 'cuda'] == ids[False, 'cpu'])"

# 3. An answer and a picture at SHAPE in int4 and fp16 beside torch in bfloat16, in turns: time, launches, memory, energy.
step 400 latency $python -m mmada_lite bench latency --device cuda --shape "$shape" --work "$work" --force -o "$out/latency.json"
echo "records: $(ls "$out"/*.json)"
