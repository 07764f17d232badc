"""Show how a drawing comes into being: python steps_to_gif.py "a red heart" heart.gif"""

import sys

from PIL import Image

import mmada_lite

prompt, file = sys.argv[1:] or ("a red heart", "heart.gif")

model = mmada_lite.load()
drawing = model.paint(prompt, model.image_defaults.replace(steps=16), seed=7)
# After each step: what the picture is if every code left is taken as predicted now.
frames = [drawing.preview().resize((256, 256), Image.Resampling.NEAREST) for _ in drawing]

durations = [120] * (len(frames) - 1) + [2000]  # milliseconds; the last one stays
frames[0].save(file, save_all=True, append_images=frames[1:], duration=durations, loop=0)
print(f"{file}: {len(frames)} frames")
