"""What is added to input or hidden states: its settings, streams, formula and hooks."""
