"""The notebook's outputs, as the packaged model gives them: `python tests/notebook.py` runs its cells and keeps what they show.

It knows plain Python cells, what they print, and a picture as the last value. It knows no Jupyter.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


def outputs(source: str, names: dict[str, Any], number: int) -> Iterator[Mapping[str, Any]]:
    """Run a cell among the `names` of those before it; what a notebook stores of it."""
    *statements, last = ast.parse(source).body
    shown: object = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(statements, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        else:
            exec(compile(ast.Module([last], []), "cell", "exec"), names)
    if printed.getvalue():
        yield {"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(keepends=True)}
    if isinstance(shown, Image.Image):
        png = shown._repr_png_()
        assert png is not None
        words = f"<PIL.Image.Image image mode={shown.mode} size={shown.width}x{shown.height}>"
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": [words]}
        yield {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}


def made(text: str) -> str:
    """A notebook with the outputs of its cells made anew."""
    content, names = json.loads(text), dict[str, Any]()
    for number, cell in enumerate((cell for cell in content["cells"] if cell["cell_type"] == "code"), 1):
        cell["execution_count"], cell["outputs"] = number, list(outputs("".join(cell["source"]), names, number))
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    NOTEBOOK.write_text(made(NOTEBOOK.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
