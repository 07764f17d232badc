"""Making weights smaller: number formats now; calibration and search build on them."""
