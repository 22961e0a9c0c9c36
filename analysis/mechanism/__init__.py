"""Why noise does, or does not, diversify: the probes behind `embednoise probe`."""
