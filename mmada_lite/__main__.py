"""The command `mmada-lite`, also as `python -m mmada_lite`. From its first line on Ctrl-C ends it without a traceback."""

import os


def main() -> int:
    """Run the command line as a process. Returns the exit code."""
    try:
        from mmada_lite.cli import process
    except KeyboardInterrupt:  # not in an import alone: what is imported may turn it into something else
        os._exit(130)
    return process.run()


if __name__ == "__main__":
    raise SystemExit(main())
