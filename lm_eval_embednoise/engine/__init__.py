"""Tokens in, tokens out: jobs to samples with a frozen model."""
