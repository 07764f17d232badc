"""The two loops under one name: text block by block (`text_loop`), pictures all at once (`picture_loop`).

Both are generators of steps over one kind of model call (`reading`). There is nothing here but their names.
"""

from mmada_lite.picture_loop import decode_image, final_codes
from mmada_lite.reading import Reading, Step, read
from mmada_lite.text_loop import decode_text

__all__ = ["Reading", "Step", "decode_image", "decode_text", "final_codes", "read"]
