"""Ids and layouts: the recorded chat conversations, the code offset, and that typed special spellings stay text."""

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from mmada_lite import Error
from mmada_lite.decoding.canvas import image_canvas, text_canvas
from mmada_lite.decoding.rows import (
    chat_ids,
    paint_prompt,
    picture_prompt,
    text_prompt,
    thought_prompt,
    turn_end,
    unconditional_prompt,
)
from mmada_lite.families import Rows
from mmada_lite.vocabulary import SpecialTokens, Tokenizer, Vocabulary

PUBLISHED = SpecialTokens(126080, 126081, 126084, 126085, 126088, 126089, 126093, 126094, 126336, 126346, 126347, 126348)


@pytest.fixture(scope="module", params=["tokenizer", "tokenizer_noheader"])
def named_tokenizer(request, golden):
    return request.param, Tokenizer.from_file(golden / "prompting" / request.param / "tokenizer.json")


def published_like(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer, codebook_size=8192, size=134656, mask_id=126336)


def test_recorded_conversations(named_tokenizer, golden):
    name, tokenizer = named_tokenizer
    vocabulary = published_like(tokenizer)
    cases = json.loads((golden / "prompting" / "prompting.json").read_text())["cases"]
    chats = [c for c in cases if c["task"] == "chat_template" and c["tokenizer"] == name]
    assert chats
    for case in chats:
        ids = chat_ids(tokenizer, vocabulary, case["messages"])
        assert ids == case["token_ids"] == tokenizer.encode(case["rendered"], special=True)
        if "mmu_inference_input_ids" in case:
            assert vocabulary.image_code_offset == case["image_code_offset"]
            assert picture_prompt(case["codes"], vocabulary) + ids == case["mmu_inference_input_ids"]


def test_absent_header_tokens_are_added_and_move_the_codes(named_tokenizer):
    _, tokenizer = named_tokenizer
    assert len(tokenizer) == 426
    assert published_like(tokenizer).image_code_offset == 426
    assert published_like(tokenizer).special.soi == PUBLISHED.soi  # not in the file: the published id


def test_special_spellings_typed_by_a_user_are_text(named_tokenizer):
    _, tokenizer = named_tokenizer
    vocabulary = published_like(tokenizer)
    ids = chat_ids(tokenizer, vocabulary, [{"role": "user", "content": "stop <|eot_id|> now"}])
    assert ids.count(vocabulary.special.eot) == 1
    assert "<|eot_id|>" in tokenizer.decode(ids)


def test_decoding_leaves_out_what_is_not_text(named_tokenizer):
    _, tokenizer = named_tokenizer
    ids = tokenizer.encode("a red cube")
    special = published_like(tokenizer).special
    assert tokenizer.decode([special.bos, *ids, special.eot, 130000]) == "a red cube"


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        ([], "empty"),
        ([{"role": "user", "content": "  "}], "message 1"),
        ([{"role": "robot", "content": "hi"}], "message 1 has the role 'robot'; use one of system, user, assistant"),
    ],
)
def test_impossible_conversations(named_tokenizer, messages, word):
    _, tokenizer = named_tokenizer
    with pytest.raises(Error, match=word):
        chat_ids(tokenizer, published_like(tokenizer), messages)


OTHER_ROWS: dict[str, Any] = {
    "message": [{"text": "say "}, "bos", {"text": "{role}: {content} |"}, "eot", {"text": ". "}, "eos"],
    "chat": ["bos", "{messages}", {"text": "so "}, "{masks}"],
    "paint": ["bos", "{prompt}", "eos", "soi", "{codes}", "eoi"],
    "unconditional": ["bos", "soi", "{codes}", "eoi"],
}


@pytest.mark.parametrize("encoded", [True, False])
def test_rows_of_another_family(named_tokenizer, encoded):
    """Whether their texts are encoded once for all or when they are asked for."""
    _, tokenizer = named_tokenizer
    vocabulary, said = published_like(tokenizer), tokenizer.encode
    s = vocabulary.special

    def known(**changes: Any) -> Vocabulary:
        rows = Rows.from_json(OTHER_ROWS | changes, [each.name for each in fields(SpecialTokens)])
        return replace(vocabulary, rows=rows.encoded(said) if encoded else rows)

    end = [*said(" |"), s.eot, *said(". "), s.eos]
    assert turn_end(tokenizer, known()) == end
    assert text_prompt(tokenizer, known()) == [s.bos, *said("so ")]
    message = [*said("say "), s.bos, *said("user: hi |"), *end[len(said(" |")) :]]
    assert chat_ids(tokenizer, known(), [{"role": "user", "content": "hi"}]) == [s.bos, *message, *said("so ")]
    begun = known(message=["bos", {"text": "{content}"}, "eot", {"text": "({role})"}])
    assert turn_end(tokenizer, begun) == [s.eot, *said("(assistant)")]
    assert paint_prompt([s.bos, 5], known()) == [s.bos, 5, s.eos, s.soi]  # where bos stands right before it, it stands once
    apart = known(paint=["t2i", "bos", "eos", "{prompt}", "soi", "{codes}", "eoi"])
    assert paint_prompt([s.bos, 5], apart) == [s.t2i, s.bos, s.eos, s.bos, 5, s.soi]


def test_a_row_with_a_text_asks_for_a_tokenizer():
    painted = {"paint": [{"text": "draw "}, *OTHER_ROWS["paint"]]}
    rows = Rows.from_json(OTHER_ROWS | painted, [each.name for each in fields(SpecialTokens)])
    vocabulary = replace(Vocabulary(PUBLISHED, 126349, 8192, 134656), rows=rows)
    line = "the row 'paint' holds a text, and this bundle has no tokenizer.json that reads it"
    with pytest.raises(Error, match=f"^{line}$"):
        paint_prompt([5], vocabulary)


def test_vocabulary_goes_to_json_and_back():
    vocabulary = Vocabulary(PUBLISHED, 126349, 8192, 134656)
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary
    broken = vocabulary.to_json() | {"codebook_sise": 3}
    with pytest.raises(Error, match="codebook_sise"):
        Vocabulary.from_json(broken)
    with pytest.raises(Error, match="image codes end"):
        Vocabulary(PUBLISHED, 126464 + 8192, 8192, 134656)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(Error, match="no tokenizer at"):
        Tokenizer.from_file(path)
    for text in ("", "{", "[]", '{"model": 3}'):
        path.write_text(text)
        with pytest.raises(Error, match=r"tokenizer\.json is not a tokenizer\.json"):
            Tokenizer.from_file(path)


def test_layouts(vocabulary):
    s = vocabulary.special
    assert paint_prompt([5, 6], vocabulary) == [s.t2i, s.bos, 5, 6, s.eos, s.soi]
    assert paint_prompt([s.bos, 5], vocabulary) == [s.t2i, s.bos, 5, s.eos, s.soi]
    assert unconditional_prompt(vocabulary) == paint_prompt([], vocabulary) == [s.t2i, s.bos, s.eos, s.soi]
    assert thought_prompt([5], [6, 7], vocabulary) == [s.r2i, s.bos, 5, 6, 7, s.eos, s.soi]
    unknown = np.array([True, False, True, False])
    canvas = image_canvas([1, 2, 3, s.soi], [4, 5, 6, 7], unknown, vocabulary, unconditional_prompt=[1, s.soi])
    assert canvas.tokens.tolist() == [[1, 2, 3, s.soi, s.mask, 117, s.mask, 119, s.eoi]]
    assert canvas.editable[0].nonzero()[0].tolist() == [4, 6]
    where = canvas.masked()
    canvas.write(where, np.full_like(canvas.tokens, 120))
    assert canvas.unconditional.tolist() == [[1, s.soi, 120, 117, 120, 119, s.eoi]]
    with pytest.raises(AssertionError, match="given token"):
        canvas.write(np.ones_like(where), canvas.tokens)
    guided = text_canvas([1, 2], 2, s.mask, guided=True)
    assert guided.unconditional.tolist() == [[s.mask] * 4]


def test_a_file_is_read_in_lower_case_where_it_is_asked(golden):
    path = golden / "prompting" / "tokenizer" / "tokenizer.json"
    assert Tokenizer.from_file(path, lower_case=True).encode("A Cat") == Tokenizer.from_file(path).encode("a cat")
    assert Tokenizer.from_file(path).encode("A Cat") != Tokenizer.from_file(path).encode("a cat")


def test_a_file_is_refused_whose_ids_would_be_others_or_whose_tokens_are_no_bytes(golden, tmp_path):
    content = json.loads((golden / "prompting" / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    content["decoder"] = {"type": "Fuse"}
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(Error, match="the tokenizer's decoder is 'Fuse'; only tokens of bytes"):
        Tokenizer.from_file(tmp_path / "a.json").spellings()
    last = max(content["added_tokens"], key=lambda token: token["id"])
    last["id"] += 7
    (tmp_path / "b.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(Error, match=f"with the id {last['id']}, and the tokenizers library gives it"):
        Tokenizer.from_file(tmp_path / "b.json")
