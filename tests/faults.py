"""What a planted fault is, and those of what is trained besides sums, questions and pictures: second turns, holes, new things,
wordings, capitals, and runs that begin from a checkpoint. `planted.py` plants them.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """In a file of train/, `old` (which stands there once) becomes `new`; `test` notices."""

    what: str
    file: str
    old: str
    new: str
    test: str


SECOND, HOLES, STARTS = (f"tests/train/test_{name}.py::test_" for name in ("second_turns", "holes", "starts"))
BESIDES = (
    Fault(
        "a second problem that begins with a number of the first",
        "data/turns.py",
        "problem = Problem(result, sign, other)",
        "problem = Problem(max(first.first, other), sign, other)",
        SECOND + "a_second_problem_begins_with_the_result_of_the_first",
    ),
    Fault(
        "second problems that are held out trained",
        "data/turns.py",
        "if on_side(problem.split_text, held_out, half):",
        "if True:",
        SECOND + "a_second_problem_begins_with_the_result_of_the_first",
    ),
    Fault(
        "first turns always without their thought",
        "data/conversations.py",
        "first.response if kept else answer_of(first.response)",
        "answer_of(first.response)",
        SECOND + "conversations_are_kept_as_chat_keeps_them",
    ),
    Fault(
        "the roles of a conversation the other way round",
        "data/material.py",
        'cycle(("user", "assistant"))',
        'cycle(("assistant", "user"))',
        SECOND + "conversations_are_kept_as_chat_keeps_them",
    ),
    Fault(
        "the colour of the background said of the thing",
        "data/turns.py",
        "rng.integers(len(COLOUR_OF_IT))], COLOUR_OF[name])",
        "rng.integers(len(COLOUR_OF_IT))], COLOUR_OF['sun'])",
        SECOND + "what_is_asked_of_it_is_what_is_known_of_the_thing",
    ),
    Fault(
        "held-out wordings of facts trained",
        "data/texts.py",
        "fact_wordings(held_out=False))",
        "fact_wordings(held_out=True))",
        SECOND + "no_wording_that_is_held_out_is_trained",
    ),
    Fault(
        "facts in other wordings alone",
        "data/texts.py",
        "if rng.random() < 0.5:\n        answer, questions = FACTS",
        "if rng.random() < 0.0:\n        answer, questions = FACTS",
        SECOND + "no_wording_that_is_held_out_is_trained",
    ),
    Fault(
        "a quarter of yes and no is no",
        "data/texts.py",
        "if no := rng.random() < 0.5:",
        "if no := rng.random() < 0.25:",
        SECOND + "questions_of_yes_and_no_are_half_no_and_ask_for_any_other_thing",
    ),
    Fault(
        "a no about the thing itself",
        "data/texts.py",
        "[each for each in CONCEPTS if each is not concept]",
        "[*CONCEPTS]",
        SECOND + "questions_of_yes_and_no_are_half_no_and_ask_for_any_other_thing",
    ),
    Fault(
        "a full stop after every title",
        "data/texts.py",
        'if how in ("sentence", "upper") and',
        'if how != "lower" and',
        SECOND + "capitals_change_letters_and_end_a_sentence",
    ),
    Fault(
        "two things named from the right",
        "data/scenes.py",
        'for name in layout.names)\n    return f"{first} and {second}"',
        'for name in layout.names[::-1])\n    return f"{first} and {second}"',
        SECOND + "two_things_without_places_are_named_from_the_left",
    ),
    Fault(
        "two things one above the other named without places",
        "data/sequences.py",
        "together = layout.columns == 2 and",
        "together = layout.columns != 2 and",
        SECOND + "two_things_without_places_are_named_from_the_left",
    ),
    Fault(
        "words of second turns not said to be known",
        "data/knowledge.py",
        "    yield from turns.corpus()\n",
        "",
        SECOND + "what_is_known_is_every_word_that_is_asked",
    ),
    Fault(
        "the end behind a hole hidden",
        "data/masking.py",
        "behind = np.zeros(prompts.shape, dtype=bool), np.zeros((count, len(ends)), dtype=bool)",
        "behind = np.zeros(prompts.shape, dtype=bool), np.ones((count, len(ends)), dtype=bool)",
        HOLES + "a_hole_is_of_the_text_alone_and_every_row_weighs_alike",
    ),
    Fault(
        "rows of large holes weighed more",
        "data/masking.py",
        "weight = masked / (masked.sum(axis=1, keepdims=True) * count)",
        "weight = masked / masked.sum()",
        HOLES + "a_hole_is_of_the_text_alone_and_every_row_weighs_alike",
    ),
    Fault(
        "holes that are never the whole text",
        "data/masking.py",
        "WHOLE = 0.5",
        "WHOLE = 0.0",
        HOLES + "a_hole_is_of_the_text_alone_and_every_row_weighs_alike",
    ),
    Fault(
        "the result of another problem filled",
        "data/conversations.py",
        "encode(str(problem.answer))",
        "encode(str(problem.first))",
        HOLES + "holes_are_in_captions_answers_and_results_without_a_thought",
    ),
    Fault(
        "results of held-out problems filled",
        "data/conversations.py",
        "draw_problem(kind, self.held_out, rng",
        "draw_problem(kind, not self.held_out, rng",
        HOLES + "holes_are_in_captions_answers_and_results_without_a_thought",
    ),
    Fault(
        "a new thing on the other side",
        "data/layouts.py",
        'side in ("right", "bottom")',
        'side in ("left", "top")',
        HOLES + "a_new_thing_lies_where_it_is_hidden_and_is_what_the_caption_says",
    ),
    Fault(
        "a new thing beside the near half of a picture",
        "data/sequences.py",
        "[other[:, half:], turned[:, half:]]",
        "[other[:, :half], turned[:, half:]]",
        HOLES + "a_new_thing_lies_where_it_is_hidden_and_is_what_the_caption_says",
    ),
    Fault(
        "pictures turned back the wrong way",
        "data/layouts.py",
        "-SIDES.index(side)",
        "SIDES.index(side)",
        HOLES + "a_side_is_turned_to_the_right_and_back",
    ),
    Fault(
        "a start that is told in the folder's own words",
        "verbs.py",
        "kept = own.exists() and workspace.speaks_its_own()",
        "kept = own.exists()",
        STARTS + "a_run_speaks_the_tokenizer_of_its_start",
    ),
    Fault(
        "the words of what was trained lost",
        "verbs.py",
        "kept = own.exists() and workspace.speaks_its_own()",
        "kept = False",
        STARTS + "what_was_trained_in_a_folder_keeps_its_tokenizer",
    ),
    Fault(
        "seconds of stages one and two passed over",
        "verbs.py",
        "loop=replace(settings.loop, seconds=arguments.seconds)",
        "loop=settings.loop",
        STARTS + "time_ends_a_stage",
    ),
)
