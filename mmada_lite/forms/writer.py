"""What a model writes behind a prompt: a whole answer, or one of which a part is given, as a text with holes or as ids.

It turns what is given into rows, checks that they fit, and begins to write. It knows no bundle and no device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.generate import Decoding, TextTokens
from mmada_lite.decoding.rows import turn_end
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.errors import Error
from mmada_lite.forms.filling import TOGETHER, Filling
from mmada_lite.forms.holes import read_partial
from mmada_lite.forms.rows import Row, beginning, forms
from mmada_lite.streams import Answer
from mmada_lite.vocabulary import Tokenizer, Vocabulary, special_spellings

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Writer:
    """fits: raises Error where a row of a length is too long for the model, with what it is; watched: a decode whose steps end
    in an Error where the model's files are damaged; alone: why one row at a time is decoded, "" where many are."""

    denoiser: Denoiser
    vocabulary: Vocabulary
    tokenizer: Tokenizer | None
    fits: Callable[[int, str], None]
    watched: Callable[[Decoding], Decoding]
    alone: str

    def whole(self, prompt: Ids, settings: TextSettings, seed: int, what: str) -> Answer:
        """An answer of which nothing is given."""
        return self._write(prompt, [Row.all_masked(settings.answer_length, self._mask)], settings, seed, what)

    def of_ids(self, prompt: Ids, answer: Ids, settings: TextSettings, seed: int, what: str) -> Answer:
        """An answer that is given as ids. Raises Error where none of them is the mask."""
        row = Row.of_ids(answer, self._mask, self.tokenizer.decode if self.tokenizer else lambda ids: "")
        return self._write(prompt, [row], settings, seed, what)

    def begun(self, prompt: Ids, text: str, settings: TextSettings, seed: int, what: str) -> Answer:
        """An answer of which a part is given: its beginning or, with holes, all of it but these. Raises Error for one that is
        empty or longer than the answer may be."""
        if not text.strip():
            raise Error("the given answer is empty; say how it begins, or leave it out")
        if not (partial := read_partial(text, special_spellings())).holes:
            row = beginning(partial, self._known.encode, settings.answer_length, self._mask)
            _leaves_room(row.holes[0][0] + 1, settings)
            return self._write(prompt, [row], settings, seed, what)
        longest = sum(hole.most for hole in partial.holes)
        _leaves_room(longest + sum(len(self._known.encode(piece)) for piece in partial.pieces), settings)
        return self.filled(prompt, text, settings, seed, what)

    def filled(self, prompt: Ids, text: str, settings: TextSettings, seed: int, what: str) -> Answer:
        """A whole text but for its holes. Raises Error where it has none, or one that cannot be."""
        partial, special = read_partial(text, special_spellings()), self.vocabulary.special
        if not partial.holes:
            raise Error("the text has no hole; write [mask:3] for three tokens, or [mask:*], where something is missing")
        self.fits(len(prompt) + sum(hole.most for hole in partial.holes), what)
        end = turn_end(self._known, self.vocabulary) or [special.eos]
        rows = forms(partial, self._known.encode, end, special.eos, settings.block_length, self._mask)
        return self._write(prompt, rows, settings, seed, what)

    @property
    def _mask(self) -> int:
        return self.vocabulary.special.mask

    @property
    def _known(self) -> Tokenizer:
        assert self.tokenizer is not None, "texts are given to models that have a tokenizer"
        return self.tokenizer

    def _write(self, prompt: Ids, rows: Sequence[Row], settings: TextSettings, seed: int, what: str) -> Answer:
        """Begin answers of one length, of which the likeliest is taken."""
        self.fits(len(prompt) + len(rows[0].ids), what)
        if (ahead := settings.acceleration.speculative_steps) > 1 and self.alone:
            raise Error(f"speculative_steps {ahead} is for the CPU {self.alone}; use speculative_steps 1")
        tokens = TextTokens.of(self.vocabulary.special, self.tokenizer)
        for row in rows:
            settings.for_length(max(1, row.ids.count(tokens.mask)))  # for its errors, before any work

        def begin(answers: Sequence[Ids]) -> Decoding:
            return self.watched(generate.complete(self.denoiser, prompt, settings, tokens, answer=answers, seed=seed))

        together = 1 if self.alone or ahead > 1 else TOGETHER
        return Answer(Filling(rows, begin, tokens.stop, together), self.tokenizer, tokens.stop)


def _leaves_room(length: int, settings: TextSettings) -> None:
    if length > settings.answer_length:
        most = f"the answer has {settings.answer_length}"
        raise Error(f"the given answer takes {length} tokens with its holes and {most}; shorten it, or use a longer answer")
