"""The forms of one model's answers: a pattern or a JSON schema becomes an automaton over its tokens, and, laid over the holes
of an answer, what the loop of texts asks (`mmada_lite.decoding.constraint`).

It knows a tokenizer and the ids of a model; it knows nothing of how an answer is decoded.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error, shown
from mmada_lite.forms.letters import pattern_automaton, schema_automaton
from mmada_lite.forms.schema import ready
from mmada_lite.forms.tokens import TokenAutomaton, token_automaton
from mmada_lite.vocabulary import Tokenizer, Vocabulary

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_REMEMBERED = 8  # automata of a model
_SPELLED_ANEW = [*range(32), ord('"'), ord("\\"), 127]  # bytes that a JSON string does not hold as they are


@dataclass(frozen=True, slots=True)
class Form:
    """What the texts of some holes must be. holes: from and to which place of the answer, and the automaton of each."""

    holes: Sequence[tuple[int, int, TokenAutomaton]]
    mask: int

    def allowed(self, answer: Ints, places: Ints) -> Bools:
        """Which ids may stand at open places [Q] of an answer [N]: [Q, V]. Outside the holes all but the mask."""
        size = len(self.holes[0][2].class_of)
        allowed = np.ones((len(places), size), dtype=bool)
        allowed[:, self.mask] = False
        for start, stop, automaton in self.holes:
            own = np.flatnonzero((places >= start) & (places < stop))
            if own.size:
                allowed[own] = automaton.allowed(answer[start:stop], self.mask, list(places[own] - start))
        return allowed

    def possible(self, answer: Ints) -> bool:
        """Whether what is open in the holes of an answer [N] can be filled."""
        return all(automaton.possible(answer[start:stop], self.mask) for start, stop, automaton in self.holes)


class Forms:
    """The automata of one model's tokens. The last few are kept: to make one takes a third of a second and more."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._spellings: list[bytes | None] | None = None
        self._kept: dict[tuple[str | None, str | None, bool], TokenAutomaton] = {}

    def form(self, holes: Sequence[tuple[int, int, bool]], *, pattern: str | None = None, schema: str | None = None) -> Form:
        """A form for holes: from and to which place of an answer, and whether a space before it belongs to it.

        Raises Error where there is no automaton (see `automaton`), and where a hole is too short for every text of it."""
        laid = [(start, stop, self.automaton(pattern, schema, space)) for start, stop, space in holes]
        for start, stop, automaton in laid:
            if (shortest := automaton.shortest() or 0) > stop - start:
                what = f"the pattern {shown(pattern)}" if pattern is not None else "the schema"
                raise Error(f"{what} takes {shortest} tokens or more and the hole has {stop - start}; make the hole longer")
        return Form(laid, self._vocabulary.special.mask)

    def automaton(self, pattern: str | None, schema: str | None, space: bool = False) -> TokenAutomaton:
        """Of texts that match a pattern or satisfy a schema, with `space` also behind a space.

        Raises Error for what is neither, for both, for one that is too large or cannot end, for one that the tokens cannot
        spell, where the tokenizer is not one of bytes, and where outlines-core is missing."""
        key = pattern, schema, space
        if key not in self._kept:
            if (pattern is None) == (schema is None):
                raise Error("give a pattern or a schema, and not both")
            if len(self._kept) >= _REMEMBERED:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = self._made(pattern, schema, space)
        return self._kept[key]

    def _made(self, pattern: str | None, schema: str | None, space: bool) -> TokenAutomaton:
        special = self._vocabulary.special
        if pattern is not None:
            letters = pattern_automaton(pattern)
        else:
            assert schema is not None
            text, patterns = ready(schema)
            for each in patterns:
                if (pattern_automaton(each).next[:, _SPELLED_ANEW] >= 0).any():
                    held = (
                        "a quote, a backslash or a control, which JSON spells otherwise; name what it may match, as in [a-z ]"
                    )
                    raise Error(f"the pattern {shown(each)} of the schema matches {held}")
            letters = schema_automaton(text)
        if self._spellings is None:
            own = self._tokenizer.spellings()
            self._spellings = [*own, *[None] * (self._vocabulary.size - len(own))][: self._vocabulary.size]
            for token in asdict(special).values():
                self._spellings[token] = None
        letters = letters.behind_a_space() if space else letters
        automaton = token_automaton(letters, self._spellings, sorted({special.eos, special.eot}))
        if automaton.shortest() is None:
            what = f"the pattern {shown(pattern)}" if pattern is not None else "the schema"
            raise Error(f"no tokens of this model spell a text of {what}; use characters that its tokenizer has")
        return automaton
