"""Describe every picture of a folder in a table: python batch.py pictures answers.csv"""

import csv
import sys
from pathlib import Path

import mmada_lite

folder, output = sys.argv[1:] or (".", "answers.csv")
QUESTION = "what is this?"

model = mmada_lite.load(speed="fast")
rows = []
for path in sorted(each for each in Path(folder).iterdir() if each.suffix in (".png", ".jpg", ".webp")):
    try:
        rows.append((path.name, model.ask(path, QUESTION).result().answer))
    except mmada_lite.Error as error:  # one line that says what is wrong with this file
        print(error, file=sys.stderr)

with open(output, "w", newline="", encoding="utf-8") as table:
    csv.writer(table).writerows([("picture", QUESTION), *rows])
print(f"{output}: {len(rows)} pictures")
