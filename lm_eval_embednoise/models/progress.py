"""The progress bar of a run: samples as they end, tokens as they are read and come."""

from __future__ import annotations

import threading
import time
from typing import Any

from tqdm import tqdm

SECONDS = 0.5  # between two looks of the bar at its tokens: a long sample ends after minutes


class Progress:
    """A bar over samples that shows the tokens of those under way.

    Attributes:
        bar: tqdm's, over samples.
        tokens: of samples, so far.
        read: of prompts, so far.
    """

    def __init__(self, samples: int, shown: bool) -> None:
        """Begin at no sample of `samples`."""
        self.bar: Any = tqdm(total=samples, desc="generating", unit="sample", disable=not shown)
        self.tokens = self.read = 0
        self._started = self._looked = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()

    def more(self, tokens: int, read: int) -> None:
        """Count tokens of samples and of prompts; any thread may call it."""
        with self._lock:
            self.tokens += tokens
            self.read += read
            now = time.monotonic()
            if now - self._looked < SECONDS:
                return
            self._looked = now
            rate = self.tokens / (now - self._started)
            self.bar.set_postfix_str(
                f"{self.tokens} tokens, {rate:.0f} tokens/s, {self.read} of prompts"
            )
