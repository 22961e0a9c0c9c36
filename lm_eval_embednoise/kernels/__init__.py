"""Functions in C for a CPU, each beside the PyTorch function that it must equal.

`draws` makes the noise, `step` and `attention` are what passes do beside matrix products. In each
module a C function and its twin (`…_torch`) take the same arguments; `build.serve` says which of
the two is used. The folder is the lowest of all because `noise` and `engine` both draw on it.
"""
