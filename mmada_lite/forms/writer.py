"""What a model writes behind a prompt: a whole answer, or one of which a part is given, as a text with holes or as ids.

It turns what is given into rows, checks that they fit, and begins to write, in the form that is wanted. It knows no bundle and
no device.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mmada_lite.decoding import generate
from mmada_lite.decoding import score as scores
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.generate import Decoding, TextTokens
from mmada_lite.decoding.rows import turn_end
from mmada_lite.decoding.settings import Law, TextSettings
from mmada_lite.errors import Error, shown
from mmada_lite.forms.choosing import Choosing, spelled
from mmada_lite.forms.filling import TOGETHER, Filling
from mmada_lite.forms.form import Form, Forms
from mmada_lite.forms.holes import Hole, Partial, read_partial
from mmada_lite.forms.rows import Row, beginning, forms, longest
from mmada_lite.forms.wanted import Wanted
from mmada_lite.vocabulary import Tokenizer, Vocabulary, special_spellings

Ids = Sequence[int]
Writing = Filling | Choosing


@dataclass(frozen=True, slots=True)
class Score:
    """How likely tokens are, in nats. ids: these; by_token: what each adds to log_likelihood; model_calls: what it took."""

    log_likelihood: float
    ids: tuple[int, ...]
    by_token: tuple[float, ...]
    model_calls: int


@dataclass(frozen=True, slots=True)
class Writer:
    """denoiser: gives the one that a model has; fits: raises Error where a row of a length is too long for the model, with what
    it is; watched: steps that end in an Error where the model's files are damaged; alone: why one row at a time is decoded, ""
    where many are."""

    denoiser: Callable[[], Denoiser]
    vocabulary: Vocabulary
    tokenizer: Tokenizer | None
    fits: Callable[[int, str], None]
    watched: Callable[[Iterator[Step]], Iterator[Step]]
    alone: Callable[[], str]
    _forms: list[Forms] = field(default_factory=list)  # made when the first one is asked for

    def whole(self, prompt: Ids, settings: TextSettings, seed: int, what: str, wanted: Wanted | None = None) -> Writing:
        """An answer of which nothing is given."""
        row = Row.all_masked(settings.answer_length, self._mask)
        if wanted is not None:
            row = replace(row, plain=False)
        if wanted is not None and wanted.choices is not None:
            return self._choose(prompt, [row], wanted.choices, settings, what)
        return self._write(prompt, [row], settings, seed, what, wanted)

    def of_ids(self, prompt: Ids, answer: Ids, settings: TextSettings, seed: int, what: str) -> Writing:
        """An answer that is given as ids. Raises Error where none of them is the mask."""
        row = Row.of_ids(answer, self._mask, self.tokenizer.decode if self.tokenizer else lambda ids: "")
        return self._write(prompt, [row], settings, seed, what)

    def begun(
        self, prompt: Ids, text: str, settings: TextSettings, seed: int, what: str, wanted: Wanted | None = None
    ) -> Writing:
        """An answer of which a part is given: its beginning or, with holes, all of it but these. Raises Error for one that is
        empty or longer than the answer may be."""
        if not text.strip():
            raise Error("the given answer is empty; say how it begins, or leave it out")
        if not (partial := read_partial(text, special_spellings())).holes:
            row = beginning(partial, self._known.encode, settings.answer_length, self._mask)
            _leaves_room(row.holes[0][0] + 1, settings)
            if wanted is not None and wanted.choices is not None:
                return self._choose(prompt, [row], wanted.choices, settings, what)
            return self._write(prompt, [row], settings, seed, what, wanted)
        _leaves_room(longest(partial, self._known.encode), settings)
        return self.filled(prompt, text, settings, seed, what, wanted)

    def filled(
        self, prompt: Ids, text: str, settings: TextSettings, seed: int, what: str, wanted: Wanted | None = None
    ) -> Writing:
        """A whole text but for its holes. Raises Error where it has none, or one that cannot be."""
        partial = read_partial(text, special_spellings())
        if not partial.holes:
            raise Error("the text has no hole; write [mask:3] for three tokens, or [mask:*], where something is missing")
        if wanted is not None and wanted.choices is not None:
            return self._choose_in(prompt, partial, wanted.choices, settings, what)
        self.fits(len(prompt) + sum(hole.most for hole in partial.holes), what)
        return self._write(prompt, self._rows(partial, settings), settings, seed, what, wanted)

    @property
    def _mask(self) -> int:
        return self.vocabulary.special.mask

    @property
    def _known(self) -> Tokenizer:
        assert self.tokenizer is not None, "texts are given to models that have a tokenizer"
        return self.tokenizer

    def _rows(self, partial: Partial, settings: TextSettings) -> list[Row]:
        """A row for every combination of lengths of the holes."""
        eos = self.vocabulary.special.eos
        end = turn_end(self._known, self.vocabulary) or [eos]
        return forms(partial, self._known.encode, end, eos, settings.block_length, self._mask)

    def _choose_in(self, prompt: Ids, partial: Partial, choices: Sequence[str], settings: TextSettings, what: str) -> Writing:
        """Choose for the one hole of a text; one of unknown length is as long as each choice."""
        if len(partial.holes) > 1:
            raise Error(f"choices are for one hole and the text has {len(partial.holes)}; leave one, or ask for each in turn")
        hole, lengths = partial.holes[0], [len(ids) for ids in spelled(choices, self._known, partial.holes[0].space)]
        if hole.length is None:
            partial = replace(partial, holes=(Hole(None, max(lengths), hole.space),))
        rows = {row.holes[0][1] - row.holes[0][0]: row for row in self._rows(partial, settings)}
        return self._choose(prompt, [rows[hole.length or length] for length in lengths], choices, settings, what)

    def _choose(self, prompt: Ids, rows: Sequence[Row], choices: Sequence[str], settings: TextSettings, what: str) -> Writing:
        """The likeliest choice. rows: one for all, or one for each."""
        self.fits(len(prompt) + len(rows[0].ids), what)
        ids = spelled(choices, self._known, rows[0].spaces[0])
        rows = list(rows) if len(rows) == len(choices) else [rows[0]] * len(choices)
        for row, choice, own in zip(rows, choices, ids, strict=True):
            start, stop = row.holes[0]
            if len(own) > stop - start:
                takes = f"the choice {shown(choice)} takes {len(own)} tokens and the hole has {stop - start}"
                raise Error(f"{takes}; make the hole longer, or write [mask:*]")
        tokens = TextTokens.of(self.vocabulary.special, self.tokenizer)
        answers = [row.ids for row in rows]

        def choose() -> scores.Chosen:
            together, guidance = 1 if self.alone() else scores.MOST_ROWS, settings.guidance
            return scores.choose(
                self.denoiser(), prompt, answers, ids, tokens.mask, tokens.stop, guidance=guidance, rows=together
            )

        return Choosing(rows, choices, ids, len(prompt), choose, tokens.stop, self.watched)

    def _write(
        self, prompt: Ids, rows: Sequence[Row], settings: TextSettings, seed: int, what: str, wanted: Wanted | None = None
    ) -> Writing:
        """Begin answers of one length, of which the likeliest is taken."""
        self.fits(len(prompt) + len(rows[0].ids), what)
        if (ahead := settings.acceleration.speculative_steps) > 1 and self.alone():
            raise Error(f"speculative_steps {ahead} is for the CPU {self.alone()}; use speculative_steps 1")
        tokens = TextTokens.of(self.vocabulary.special, self.tokenizer)
        for row in rows:
            settings.for_length(max(1, row.ids.count(tokens.mask)))  # for its errors, before any work
        laid = {} if wanted is None else self._laid(rows, wanted)
        rows = [row for row in rows if wanted is None or row.ids in laid]

        def begin(answers: Sequence[Ids]) -> Decoding:
            constraints = [laid[tuple(ids)] for ids in answers] if laid else []
            decoding = generate.complete(
                self.denoiser(), prompt, settings, tokens, answer=answers, seed=seed, constraints=constraints
            )
            return replace(decoding, steps=self.watched(decoding.steps))

        together = 1 if self.alone() or ahead > 1 else TOGETHER
        return Filling(rows, begin, tokens.stop, together)

    def _laid(self, rows: Sequence[Row], wanted: Wanted) -> dict[Ids, Form]:
        """The form of each row's holes, by the row's ids; rows with a hole that is too short are left out. Raises Error where
        that is all of them."""
        if not self._forms:
            self._forms.append(Forms(self._known, self.vocabulary))
        made, laid = self._forms[0], dict[Ids, Form]()
        for space in set(rows[0].spaces):
            made.automaton(wanted.pattern, wanted.schema, space)  # for its errors, which are those of every row
        fault: Error | None = None
        for row in rows:
            holes = [(start, stop, space) for (start, stop), space in zip(row.holes, row.spaces, strict=True)]
            try:
                laid[row.ids] = made.form(holes, pattern=wanted.pattern, schema=wanted.schema)
            except Error as error:
                fault = error
        if fault is not None and not laid:
            raise fault
        return laid

    def scored(
        self,
        prompt: Ids,
        text: str,
        span: tuple[int, int],
        settings: TextSettings,
        law: Law,
        draws: int,
        seed: int,
        what: str,
    ) -> Score:
        """How likely the characters span[0]..span[1]-1 of a text are, given the rest of it."""
        start, stop = span
        if not 0 <= start < stop <= len(text):
            raise Error(f"the span is {start} to {stop} and the text has {len(text)} characters; give 0 <= start < stop")
        space = text[:start].endswith(" ")
        ids = self._known.encode((" " if space else "") + text[start:stop])
        partial = Partial((text[:start], text[stop:]), (Hole(len(ids), len(ids), space),))
        (row,) = self._rows(partial, settings)
        self.fits(len(prompt) + len(row.ids), what)
        first, last = row.holes[0]
        answer = [*row.ids[:first], *ids, *row.ids[last:]]
        inside = [first <= place < last for place in range(len(answer))]
        found = scores.score(
            self.denoiser(),
            prompt,
            answer,
            inside,
            self._mask,
            law=law,
            guidance=settings.guidance,
            block_length=settings.block_length,
            draws=draws,
            seed=seed,
            rows=1 if self.alone() else scores.MOST_ROWS,
        )
        by_token = tuple(found.by_place[0, first:last].tolist())
        return Score(float(found.log_likelihood[0]), tuple(ids), by_token, found.model_calls)


def _leaves_room(length: int, settings: TextSettings) -> None:
    if length > settings.answer_length:
        most = f"the answer has {settings.answer_length}"
        raise Error(f"the given answer takes {length} tokens with its holes and {most}; shorten it, or use a longer answer")
