"""Padded prompt rows equal the reference's, id for id."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmada_lite.canvas import picture_prompt
from mmada_lite.train import prompting
from mmada_lite.vocabulary import SpecialTokens, Tokenizer, Vocabulary, render_chat

FOLDER = Path(__file__).parent / "golden" / "prompting"
CASES = json.loads((FOLDER / "prompting.json").read_text())["cases"]


def named(case: dict[str, Any]) -> str:
    return f"{case['task']}-{case['tokenizer']}-{case['max_text_len']}"


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: Tokenizer.from_file(FOLDER / name / "tokenizer.json") for name in ("tokenizer", "tokenizer_noheader")}


def vocabulary_of(case: dict[str, Any], tokenizers: dict[str, Tokenizer]) -> Vocabulary:
    tokenizer = tokenizers[case["tokenizer"]]
    assert len(tokenizer) == case["len_tokenizer_after_init"]
    return Vocabulary.from_tokenizer(tokenizer, codebook_size=8192, size=134656)


def built(case: dict[str, Any], special: SpecialTokens) -> dict[str, Any]:
    """What our builder gives for a case, under the case's own keys."""
    task, texts, pictures, length = case["task"], case["text_ids"], case.get("image_ids"), case["max_text_len"]
    if task in ("t2i_gen", "t2i"):
        drop = [u < case["cond_dropout_prob"] for u in case["dropout_uniform"]] if task == "t2i" else None
        rows = prompting.painting_rows(texts, pictures, special, length, case.get("image_labels"), drop)
        return {"input_ids": rows.input_ids, "attention_mask": rows.mask, "labels": rows.labels}
    if task == "mmu":
        rows = prompting.asking_rows(texts, pictures, special, length)
        return {"input_ids": rows.input_ids, "prompt_mask": rows.mask, "labels": rows.labels}
    if task == "mmu_gen_prompt":
        ids, masks = prompting.asking_prompts(texts, pictures, special, length)
        return {"input_ids": ids, "prompt_mask": masks}
    if task in ("lm", "lm_chat"):
        rows = prompting.text_rows(texts, special, case["max_seq_len"], chat=task == "lm_chat")
        return {"input_ids": rows.input_ids, "mask": rows.mask, "labels": rows.labels}
    assert task == "r2i"
    rows = prompting.reasoning_rows(texts, pictures, special, length)
    return {"input_ids": rows.input_ids, "prompt_mask": rows.mask, "labels": rows.labels}


@pytest.mark.parametrize("case", [case for case in CASES if "text_ids" in case], ids=named)
def test_rows_equal_the_reference(case: dict[str, Any], tokenizers: dict[str, Tokenizer]) -> None:
    ours = built(case, vocabulary_of(case, tokenizers).special)
    compared = [key for key in ours if key in case]
    assert "input_ids" in compared
    assert len(compared) == 3 or case["task"] in ("t2i_gen", "mmu_gen_prompt")
    for key in compared:
        values = ours[key] if isinstance(ours[key], list) else ours[key].tolist()
        assert values == case[key], key


@pytest.mark.parametrize("case", [case for case in CASES if "text_ids" in case], ids=named)
def test_texts_tokenize_as_in_the_reference(case: dict[str, Any], tokenizers: dict[str, Tokenizer]) -> None:
    texts = case.get("texts", case.get("prompts"))
    assert [tokenizers[case["tokenizer"]].encode(text, special=True) for text in texts] == case["text_ids"]


@pytest.mark.parametrize("case", [case for case in CASES if case["task"] == "chat_template"], ids=named)
def test_chats_equal_the_reference(case: dict[str, Any], tokenizers: dict[str, Tokenizer]) -> None:
    assert render_chat(case["messages"]) == case["rendered"]
    ids = tokenizers[case["tokenizer"]].encode(case["rendered"], special=True)
    assert ids == case["token_ids"]
    prompt = picture_prompt(case["codes"], vocabulary_of(case, tokenizers)) + ids
    assert prompt == case["mmu_inference_input_ids"]


@pytest.mark.parametrize("case", [c for c in CASES if c["task"] == "lm_generate_batch_left_padded"], ids=named)
def test_left_padding_equals_the_reference(case: dict[str, Any], tokenizers: dict[str, Tokenizer]) -> None:
    rows = [tokenizers[case["tokenizer"]].encode(text, special=True) for text in case["rendered"]]
    ids, mask = prompting.left_padded(rows, case["pad_token_id"])
    assert ids.tolist() == case["input_ids"]
    assert mask.tolist() == case["attention_mask"]


def test_every_recorded_case_is_compared() -> None:
    others = {case["task"] for case in CASES if "text_ids" not in case}
    assert others == {"chat_template", "lm_generate_batch_left_padded"}


def test_a_mask_can_be_longer_than_the_reference_expects() -> None:
    """The quirk kept in asking_prompts: a long picture leaves no zeros, and rows then differ in length."""
    special = SpecialTokens(*range(100, 112))
    header = [special.end_header]
    _, masks = prompting.asking_prompts([[1, *header, 2], [1]], [[5] * 9, [6] * 9], special, 8)
    assert [len(mask) for mask in masks] == [15, 12]
