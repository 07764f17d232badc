"""Watch an answer resolve: python watch_answer.py "what is 47 + 85?" """

import sys

import mmada_lite

(question,) = sys.argv[1:] or ("what is 47 + 85?",)

model = mmada_lite.load()
answer = model.chat(question)
width = 0
for _ in answer:  # tokens come in the order of certainty, not from left to right
    line = " ".join(answer.so_far(mark="_").split())
    width = max(width, len(line))
    print(f"\r{line.ljust(width)}", end="", flush=True)

result = answer.result()
print(f"\rthought: {result.thought}".ljust(width + 1))
print(f"answer:  {result.answer}")
