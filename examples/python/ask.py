"""Ask about a picture, in a conversation: python ask.py photo.jpg "what is this?" "what color is the background?" """

import sys

import mmada_lite

picture, *questions = sys.argv[1:] or ("cat.png", "what is this?", "what color is the background?")

model = mmada_lite.load()
conversation: list[dict[str, str]] = []
for question in questions:
    conversation.append({"role": "user", "content": question})
    result = model.ask(picture, conversation).result()
    conversation.append({"role": "assistant", "content": result.answer})
    print(f"{question} {result.answer}")
    if not result.complete:
        print("(the answer was cut: TextSettings(answer_length=...) gives it more room)")
