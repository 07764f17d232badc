"""Draw a sentence: python draw.py "a cat on a yellow background" cat.png"""

import sys

import mmada_lite

prompt, file = sys.argv[1:] or ("a cat on a yellow background", "cat.png")

model = mmada_lite.load()  # the small model in the package; load("folder") opens another bundle
drawing = model.paint(prompt, seed=3)  # same seed, same picture
for step in drawing:
    print(f"step {step.index + 1} of {step.total_steps}: {step.remaining} codes to go")

result = drawing.result()
result.picture.save(file)
print(f"{file}: {result.model_calls} model calls in {result.seconds:.1f} s")
