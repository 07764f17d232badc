"""`python -m mmada_lite` is the command `mmada-lite`."""

from mmada_lite.cli import main

raise SystemExit(main())
