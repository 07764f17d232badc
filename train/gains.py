"""Does UniGRPO gain? One start, trained for the same seconds in several ways, some seeds each: copies hidden at random as in
the paper, states of the decoding, and further supervised training; and what is right of held-out questions, before and after.

    mmada-lite train gains --from START --task difference3 --seconds 1800 --seeds 0 1 2
    mmada-lite train gains --from START --task difference3 --ablate --batches 30

Questions are of the half of what is held out that models are chosen by. A run that is cut goes on where it was (in
FOLDER/gains). Knows no objective.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmada_lite.arguments import Parser, exit_code, threads
from mmada_lite.errors import Error
from mmada_lite.train.intervals import paired, tally

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmada_lite.train.data.sequences import Sequences
    from mmada_lite.train.loop import Loop
    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.stage_three import Policy
    from mmada_lite.train.workspace import Workspace

SUMS, DRAWINGS = ("difference2", "difference3", "sum2", "sum3"), ("paint", "thought_to_image")
SUMS_WITHOUT_REWARDS = tuple(task for task in SUMS if task != "difference3")  # `recipe.REWARDS` needs torch
SUPERVISED = "supervised"
Changes = Mapping[str, Any]  # of `recipe.policy_settings`
BASE: Changes = {"few_steps": True, "rate": 2.0, "copies": 4, "prompts": 32, "skip_ties": True}
ARMS: Mapping[str, Changes] = {"random": {}, "trace": {"trace": True}, SUPERVISED: {}}
ABLATIONS: Mapping[str, Changes] = {
    "random": {},
    "ends-counted": {"ends": "counted"},
    "ends-shown": {"ends": "shown"},
    "one-copy": {"copies": 1},
    "eight-copies": {"copies": 8},
    "ratios-0.1-0.9": {"ratios": (0.1, 0.9)},
    "ratios-0.5-1": {"ratios": (0.5, 1.0)},
    "rate-0.5": {"rate": 0.5},
    "rate-6": {"rate": 6.0},
    "ties-kept": {"skip_ties": False},
}
ROWS = 64  # of a step of supervised training
MOST_STEPS = 1_000_000
SUPERVISED_RATE = 0.5  # times stage two's, as its later runs have it
CASES = 1000  # seed of the questions


@dataclass(frozen=True, slots=True)
class Run:
    """One training: a way of the table, a seed, and where it ends, after seconds of training or batches of responses."""

    folder: Path
    start: Path
    task: str
    way: str
    seed: int
    seconds: float | None
    batches: int | None
    prompts: int
    guidance: float

    @property
    def state_folder(self) -> Path:
        """Where its state is kept: another one for whatever would make another run."""
        end = f"{self.seconds:g}-seconds" if self.seconds else f"{self.batches}-batches"
        name = f"{self.task}-{end}-prompts-{self.prompts}-guidance-{self.guidance:g}"
        return self.folder / "gains" / name / f"{self.way}-{self.seed}"


def train(run: Run, workspace: Workspace) -> tuple[MMaDA, float, int]:
    """Train, or go on where the run was left: the averaged weights, seconds of training, and steps."""
    from mmada_lite.train.recipe import policy_settings
    from mmada_lite.train.stages import load_trained
    from mmada_lite.train.verbs import open_stage_three, start_model

    model, tokenizer, vocabulary = start_model(workspace, run.start)
    if run.way == SUPERVISED:
        loop = _supervised(run, model, _sequences(run, workspace, tokenizer, vocabulary))
    else:
        changes = {**BASE, "prompts": run.prompts, "guidance": run.guidance, **{**ARMS, **ABLATIONS}[run.way]}
        settings = policy_settings((run.task,), run.seed, MOST_STEPS, seconds=run.seconds, **changes)
        if run.batches:
            settings = replace(settings, loop=replace(settings.loop, steps=run.batches * settings.updates))
        stage = open_stage_three(workspace, run.start, run.state_folder, settings)
        stage.train()
        loop = stage.loop
    load_trained(run.state_folder, model)
    return model, loop.seconds, loop.step


def _supervised(run: Run, model: MMaDA, sequences: Sequences) -> Loop:
    from mmada_lite.train.stages import STAGE_TWO, Share, StageSettings, train_stage

    task = "sum" if run.task in SUMS else run.task
    how = replace(STAGE_TWO.loop.scaled(MOST_STEPS, SUPERVISED_RATE), average=0.97, seconds=run.seconds)
    if run.batches:
        how = replace(how, steps=run.batches)
    return train_stage(model, sequences, run.state_folder, StageSettings({task: Share(1.0)}, how, ROWS, 20, 0.7, run.seed))


def _sequences(run: Run, workspace: Workspace, tokenizer: Any, vocabulary: Any) -> Sequences:
    """Rows of the task alone. Sums need no pictures."""
    import numpy as np

    from mmada_lite.train.data.pool import Pool, read_pool
    from mmada_lite.train.data.sequences import Sequences

    if run.task in SUMS:
        none = np.zeros(0, dtype=np.int64)
        empty = Pool(np.zeros((0, 64), dtype=np.int64), np.zeros((0, 4), dtype=np.int64), none, none, none.astype(bool))
        return Sequences(tokenizer, vocabulary, empty, problems={run.task: 1.0})
    several = read_pool(workspace.pool, "scene") if run.task == "thought_to_image" else None
    return Sequences(tokenizer, vocabulary, read_pool(workspace.pool, "single"), several)


def held_out(policy: Policy, task: str, count: int, workspace: Workspace) -> dict[str, dict[str, float | str]]:
    """What is right of `count` held-out questions, decoded as the small model is: by way of decoding, with case by case."""
    from mmada_lite.train.recipe import IMAGE, TEXT

    if task in DRAWINGS:
        return {"all steps": tally(_drawn(policy, task, count, workspace, IMAGE))}
    few = TEXT.replace(steps=TEXT.steps // 4)
    return {name: tally(_answered(policy, task, count, how)) for name, how in (("all steps", TEXT), ("a quarter", few))}


def _answered(policy: Policy, task: str, count: int, settings: Any) -> list[bool]:
    import numpy as np

    from mmada_lite.train import rollouts
    from mmada_lite.train.data.arithmetic import distinct_problems
    from mmada_lite.train.data.thoughts import answer_of

    problems = distinct_problems(task, True, count, np.random.default_rng(CASES), "validation")
    prompts = rollouts.question_prompts(policy, [f"what is {problem}?" for problem in problems])
    replies = rollouts.answers(policy, prompts, settings, CASES)
    return [answer_of(reply) == str(problem.answer) for reply, problem in zip(replies, problems, strict=True)]


def _drawn(policy: Policy, task: str, count: int, workspace: Workspace, settings: Any) -> list[bool]:
    """Whether the judge names all that the caption does, in its place."""
    import numpy as np
    import torch

    from mmada_lite.train import rollouts
    from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS
    from mmada_lite.train.data.layouts import Layout, cell_pictures
    from mmada_lite.train.data.scenes import GRIDS, draw_layout, drawing_thought, pair_caption
    from mmada_lite.train.data.texts import pairs, standard_caption
    from mmada_lite.train.data.thoughts import CLOSE, OPEN
    from mmada_lite.train.judge import Judge
    from mmada_lite.train.stage_vq import to_pictures
    from mmada_lite.train.vq import MagViT

    rng, unseen, layouts = np.random.default_rng(CASES), pairs(True, "validation"), list[Layout]()
    captions, thoughts = list[str](), list[str]()
    for number in range(count):
        if task == "paint":
            concept, colour = unseen[number % len(unseen)]
            layouts.append(Layout(1, 1, (CONCEPT_NAMES[concept],)))
            captions.append(standard_caption(CONCEPTS[concept], colour))
        else:
            layout, colour = draw_layout(GRIDS[1 + number % 2], True, rng, "validation"), COLOURS[rng.integers(len(COLOURS))]
            layouts.append(layout)
            captions.append(pair_caption(layout, colour, rng))
            thoughts.append(f"{OPEN} {drawing_thought(layout, colour)} {CLOSE}")
    prompts = (
        rollouts.thought_to_image_prompts(policy, captions, thoughts)
        if thoughts
        else rollouts.caption_prompts(policy, captions)
    )
    codes = rollouts.draw(policy, prompts, settings, policy.model.config.num_vq_tokens, CASES).codes
    pictures: NDArray[np.uint8] = to_pictures(MagViT.load(workspace.best_vq).eval().decode(torch.from_numpy(codes)))
    judge, right = Judge.load(workspace.judge), list[bool]()
    for picture, layout in zip(pictures, layouts, strict=True):
        seen = judge.classify(cell_pictures(picture, layout.rows, layout.columns))
        right.append(all(CONCEPT_NAMES[int(seen[cell])] == name for cell, name in layout.named))
    return right


def measured(run: Run | None, arguments: argparse.Namespace, workspace: Workspace) -> dict[str, Any]:
    """A run's record, trained and asked, or as it was kept; of the start where there is no run."""
    from mmada_lite.train.stage_three import Policy
    from mmada_lite.train.verbs import start_model

    folder = arguments.folder / "gains" / f"start-{arguments.task}" if run is None else run.state_folder
    file = folder / f"right-of-{arguments.count}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    model, tokenizer, vocabulary = start_model(workspace, arguments.start)
    about: dict[str, Any] = {"way": "start", "seed": None, "seconds": 0.0, "steps": 0}
    if run is not None:
        model, seconds, steps = train(run, workspace)
        about = {"way": run.way, "seed": run.seed, "seconds": round(seconds, 3), "steps": steps}
    about["right"] = held_out(Policy(model, tokenizer, vocabulary), arguments.task, arguments.count, workspace)
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(about), encoding="utf-8")
    partial.replace(file)
    print(f"{about['way']}, seed {about['seed']}: {told(about['right']['all steps'])}", file=sys.stderr, flush=True)
    return about


def told(found: Mapping[str, Any]) -> str:
    """86.8% (83.1 to 89.8)"""
    return f"{100 * found['share']:.1f}% ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def table(start: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """A line a run: what is right, and the change case by case with its 95% interval; then the mean of each way over its
    seeds."""
    ways = list(start["right"])
    lines = [
        f"| way | seed | seconds | steps | {' | '.join(f'{way} | change' for way in ways)} |",
        "|---" * (4 + 2 * len(ways)) + "|",
    ]
    lines.append("| start | | | | " + " | ".join(f"{told(start['right'][way])} | " for way in ways) + " |")
    changes: dict[str, list[list[float]]] = {}
    for record in records:
        cells = []
        for way in ways:
            after = record["right"][way]
            change, low, high = (100 * value for value in paired(start["right"][way]["cases"], after["cases"]))
            cells.append(f"{told(after)} | {change:+.1f} ({low:+.1f} to {high:+.1f})")
            changes.setdefault(record["way"], [[] for _ in ways])[ways.index(way)].append(change)
        seconds = f"{record['seconds']:.0f}"
        lines.append(f"| {record['way']} | {record['seed']} | {seconds} | {record['steps']} | {' | '.join(cells)} |")
    for way, each in changes.items():
        means = [f" | {sum(own) / len(own):+.2f} ({min(own):+.1f} to {max(own):+.1f})" for own in each]
        lines.append(f"| {way}, mean of {len(each[0])} (least to most) | | | | {' | '.join(means)} |")
    return "\n".join(lines)


def build_parser() -> Parser:
    supervised = ", ".join(SUMS_WITHOUT_REWARDS)
    parser = Parser(prog="mmada-lite train gains", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/emoji-work"), help="working folder of the training (%(default)s)")
    add("--from", dest="start", type=Path, required=True, help="the checkpoint that every run begins with")
    add(
        "--task",
        choices=(*SUMS, *DRAWINGS),
        default="difference3",
        help=f"what is trained and asked; {supervised} with --ways {SUPERVISED} alone (%(default)s)",
    )
    ways = tuple({**ARMS, **ABLATIONS})
    several, ends = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    several.add_argument("--ways", nargs="+", choices=ways, metavar="WAY", help=f"some of {', '.join(ways)}")
    several.add_argument("--ablate", action="store_true", help="random copies with one thing changed, not the three ways")
    ends.add_argument("--seconds", type=float, help="of training, each run (1800 unless --batches says where it ends)")
    ends.add_argument("--batches", type=int, help="of responses, or steps of supervised training, instead of seconds")
    add("--seeds", type=int, nargs="+", default=[0], help="draws of the runs (0)")
    add("--prompts", type=int, default=BASE["prompts"], help="prompts of a batch, each has 8 responses (%(default)s)")
    add("--guidance", type=float, default=0.0, help="of drawings in training, as they are drawn and learned (%(default)s)")
    add("--count", type=int, default=400, help="held-out questions (%(default)s)")
    add("--threads", type=threads, default=2, help="CPU threads (%(default)s)")
    add("-o", "--output", type=Path, help="write JSON here too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run all, print the table, write JSON. 0, 2 after a fault of the user, or 130 when it is interrupted."""
    return exit_code(lambda: _run_all(list(sys.argv[1:] if argv is None else argv)), "docs/training.md")


def _run_all(given: Sequence[str]) -> int:
    import torch

    from mmada_lite.train.judge import Judge
    from mmada_lite.train.recipe import policy_settings
    from mmada_lite.train.workspace import Workspace

    arguments = build_parser().parse_args(given)
    for name in ("batches", "prompts", "count"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise Error(f"--{name} {getattr(arguments, name)} cannot be; give a whole number from 1 on")
    if arguments.seconds is not None and not 0 < arguments.seconds < math.inf:
        raise Error(f"--seconds {arguments.seconds:g} cannot be; give a number above 0")
    if len(set(arguments.seeds)) < len(arguments.seeds) or min(arguments.seeds) < 0:
        raise Error(f"--seeds {' '.join(map(str, arguments.seeds))}: give different whole numbers from 0 on")
    ways = arguments.ways or (ABLATIONS if arguments.ablate else ARMS)
    if any(way != SUPERVISED for way in ways):  # what is wrong is said before the long work
        policy_settings((arguments.task,), 0, MOST_STEPS, False, guidance=arguments.guidance)
    torch.set_num_threads(arguments.threads)
    workspace = Workspace(arguments.folder)
    if arguments.task in DRAWINGS:
        Judge.load(workspace.judge)
    seconds = arguments.seconds or (None if arguments.batches else 1800.0)
    _keep_to(arguments.folder / "gains" / "start.txt", arguments.start.resolve(), workspace)
    start = measured(None, arguments, workspace)
    records = [
        measured(
            Run(
                *(arguments.folder, arguments.start, arguments.task, way, seed, seconds, arguments.batches),
                prompts=arguments.prompts,
                guidance=arguments.guidance,
            ),
            arguments,
            workspace,
        )
        for seed in arguments.seeds
        for way in ways
    ]
    print(table(start, records))
    if arguments.output:
        about = {"bench": "gains", "command": " ".join(["mmada-lite train gains", *given]), "start": start, "rows": records}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        partial = arguments.output.with_name(f".{arguments.output.name}.partial")
        partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        partial.replace(arguments.output)
    return 0


def _keep_to(file: Path, start: Path, workspace: Workspace) -> None:
    """Write down what the runs of a folder begin with. Raises Error where others began with something else, and, with nothing
    written, where it cannot be the start of any."""
    from mmada_lite.train.verbs import start_model

    if not file.exists():
        start_model(workspace, start)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(start), encoding="utf-8")
    elif (other := file.read_text(encoding="utf-8")) != str(start):
        raise Error(f"the runs in {file.parent} began with {other}, not with {start}: give another --folder")


if __name__ == "__main__":
    sys.exit(main())
