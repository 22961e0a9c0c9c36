"""Many runs as one experiment: its file, its plan, its cells, calibration, estimates."""
