"""Task files of the harness, as packaged data."""
