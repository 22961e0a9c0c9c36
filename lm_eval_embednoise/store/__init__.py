"""Generations kept: the store, files of other tools, and what a generation is."""
