"""How the command line spells the settings that save work. Words alone: what they do is written in `settings`."""

# option, kind of value, its name in --help, and what it does
SAVINGS: tuple[tuple[str, str, str, str], ...] = (
    ("--select", "word", "RULE", "what sure means: confidence, margin or entropy"),
    ("--entropy-bound", "number", "NATS", "write the surest tokens up to so much entropy; --steps is unused then"),
    ("--early-stop", "number", "P", "end once the end is written, or comes next surer than this"),
    ("--reach", "whole", "N", "tokens beyond a block that may be written with its last ones; needs --threshold"),
    ("--refresh", "whole", "N", "compute all anew after so many steps of a block; needs a cache"),
    ("--drift", "number", "SHARE", "compute all anew once the guesses moved by this; needs a cache"),
    ("--suffix", "whole", "N", "masks behind a block that a step still reads"),
    ("--settle", "whole", "N", "written tokens leave a cached block so many at a time; needs cache dual or prompt"),
    ("--thought-first", "flag", "", "what follows a thought waits for it"),
    ("--draft", "whole", "N", "steps foreseen and checked in one model call; the answer stays the same"),
)

PICTURE_SAVINGS: tuple[tuple[str, str, str, str], ...] = (
    ("--refresh", "whole", "N", "compute the whole row every N steps, and codes alone between them"),
    ("--shortlist", "number", "X", "of these codes X for each that will be drawn before the next whole row"),
    ("--guidance-from", "number", "SHARE", "guide from this share of the steps on"),
    ("--guidance-to", "number", "SHARE", "guide up to this share of the steps"),
    ("--unconditional-every", "whole", "N", "compute what guidance compares with every N steps"),
)
