"""Making weights smaller: methods of rounding, calibration, and the conversion that ties them together."""
