"""The torch reference of the speed benchmark is the published algorithm: it replays recorded decodings step by step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmada_lite.bench.reference import Picture, draw_picture, picture_to_draw, torch_logits, write_text
from mmada_lite.decoding.rows import paint_prompt
from mmada_lite.export.synthetic import SIZES, config_of
from mmada_lite.train.model import MMaDA


@pytest.mark.parametrize("name", ["mha_blocks", "mha_full", "mha_fewsteps", "mha_mask_in_prompt"])
def test_text_is_the_recorded_one(golden: Path, name: str) -> None:
    case, trace = _case(golden / "text" / name)
    settings, model = case["settings"], MMaDA.load(golden / case["model"]).eval()
    calls, logits = list[int](), torch_logits(model)

    def counted(tokens: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        calls.append(1)
        return logits(tokens, kept)

    with torch.inference_mode():
        steps = write_text(
            counted, trace["prompt"], settings["gen_length"], settings["block_length"], settings["steps"], case["mask_id"]
        )
        for number, row in enumerate(steps):
            assert torch.equal(row, trace["x_steps"][number])
    assert len(calls) == case["forward_calls"] == len(trace["x_steps"])


@pytest.mark.parametrize("name", ["mha_det", "gqa_det_cfg", "gqa_det_cfg_b2", "mha_inpaint"])
def test_pictures_are_the_recorded_ones(golden: Path, name: str) -> None:
    case, trace = _case(golden / "t2i" / name)
    settings, model = case["settings"], MMaDA.load(golden / case["model"]).eval()
    offset = settings["image_code_offset"]
    kept = trace["attention_mask"] != 0
    without = trace.get("uncond_input_ids", trace["input_ids"])
    without_kept = trace["uncond_attention_mask"] != 0 if "uncond_attention_mask" in trace else kept
    columns = slice(offset, offset + settings["codebook_size"])
    picture = Picture(trace["input_ids"], kept, without, without_kept, settings["seq_len"], columns, settings["mask_token_id"])
    count = 0
    with torch.inference_mode():
        for number, tokens in enumerate(
            draw_picture(
                torch_logits(model), picture, settings["timesteps"], settings["guidance_scale"], settings["schedule"], 0.0, True
            )
        ):
            assert torch.equal(tokens, trace["input_ids_steps"][number])
            count += 1
    assert count == len(trace["input_ids_steps"])


def test_a_picture_is_padded_as_published() -> None:
    size = SIZES["tiny"]
    special = size.vocabulary.special
    picture = picture_to_draw(paint_prompt([20, 21, 22], size.vocabulary), size.vocabulary, size.grid**2, padded=16)
    assert picture.tokens.shape == picture.without.shape == (1, 17 + 2 + size.grid**2)
    assert int((picture.tokens == special.ipad).sum()) == 17 - 6
    assert torch.equal(picture.kept, picture.tokens != special.ipad)
    assert int((picture.tokens == special.mask).sum()) == picture.count == size.grid**2


def test_pads_change_nothing() -> None:
    """What the mask of pads is for: the same codes with many pads and with none."""
    size = SIZES["tiny"]
    torch.manual_seed(0)
    model, drawn = MMaDA(config_of(size)).eval(), []
    with torch.inference_mode():
        for padded in (4, 40):
            picture = picture_to_draw(paint_prompt([20, 21], size.vocabulary), size.vocabulary, size.grid**2, padded)
            *_, last = draw_picture(torch_logits(model), picture, 4, 2.0, temperature=0.0, greedy=True)
            drawn.append(last[0, -(size.grid**2) - 1 : -1].numpy())
    np.testing.assert_array_equal(*drawn)


def _case(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((folder / "case.json").read_text()), load_file(folder / "trace.safetensors")
