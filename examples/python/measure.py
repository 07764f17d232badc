"""Measure the three speeds on this machine: python measure.py 5 (rounds; each speed takes its turn in every round)"""

import sys
from statistics import median

import mmada_lite

rounds = int(sys.argv[1]) if sys.argv[1:] else 5
SPEEDS = ("exact", "balanced", "fast")

models = {speed: mmada_lite.load(speed=speed) for speed in SPEEDS}
results = {speed: [models[speed].paint("a cat").result()] for speed in SPEEDS}  # the first of each warms up
for seed in range(1, rounds + 1):
    for speed in SPEEDS:
        results[speed].append(models[speed].paint("a cat", seed=seed).result())

print(f"{'speed':<10}{'seconds':>8}{'calls':>7}")
for speed, (_, *timed) in results.items():
    seconds, calls = median(each.seconds for each in timed), median(each.model_calls for each in timed)
    print(f"{speed:<10}{seconds:>8.3f}{calls:>7.0f}")
