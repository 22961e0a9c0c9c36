"""Why noise does, or doesn't, diversify: probes of a model's inside, `embednoise probe NAME`."""
