"""Draw a part of a picture anew: python inpaint.py cat.png "a dog on a yellow background" half.png"""

import sys

from PIL import Image

import mmada_lite

file, prompt, output = sys.argv[1:] or ("cat.png", "a dog on a yellow background", "half.png")

model = mmada_lite.load()
picture = Image.open(file).convert("RGB")
mask = Image.new("L", picture.size)  # black keeps, white is drawn anew
mask.paste(255, (picture.width // 2, 0, picture.width, picture.height))

result = model.inpaint(picture, mask, prompt, seed=1).result()
wide = model.extend(result.picture, prompt, side="right", amount=0.5).result()
result.picture.save(output)
wide.picture.save(f"wide-{output}")
print(f"{output}: the right half is new; wide-{output}: {wide.picture.width} x {wide.picture.height} pixels")
