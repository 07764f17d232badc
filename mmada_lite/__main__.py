"""`python -m mmada_lite` is the command `mmada-lite`."""

from mmada_lite.cli.main import main

raise SystemExit(main())
