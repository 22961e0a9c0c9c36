"""The samples of one problem, as files and stores hold them, and the program that a sample is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.scoring.extract import extract_program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_embednoise.store.generation import Generation

# What a problem's texts are (`form`, as written in stores and files): a model's answers, cut
# at the task's stop strings, whose program must be found; finished completions, whose program is
# the problem's prompt and the text to the letter; whole finished programs.
ANSWER, FINISHED, PROGRAM = FORMS = ("completion", "finished", "program")
_FILLER = "\n    pass\n\n\n"  # ends the prompt's function, so that a whole program can follow


@dataclass(frozen=True)
class Problem:
    """The samples of one problem, with all that tells which problem it is.

    Attributes:
        samples: the generated texts, in the order of their index.
        place: file and entry they come from, for messages.
        form: what its texts are, one of FORMS.
        task: the task's name.
        task_id: the problem's own id.
        doc_hash: the harness's hash of its document.
        position: its place in the task, from 0.
        prompt: what the model was given.
        fields: the document's own `prompt`, `entry_point` and `question`.
    """

    samples: tuple[Generation, ...]
    place: str = ""
    form: str = ANSWER
    task: str | None = None
    task_id: str | None = None
    doc_hash: str | None = None
    position: int | None = None
    prompt: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.task_id or f"problem {self.position}"

    def program(self, text: str) -> str:
        """The whole program of a sample.

        Raises:
            ValueError: the prompt isn't known.
        """
        if self.form == PROGRAM:
            return text
        own = self.fields.get("prompt")
        if self.form == FINISHED or own is None or (self.prompt or own).endswith(own):
            start = self.prompt if own is None else own
            if start is None:
                raise ValueError(
                    f"{self.place}: {self.name} has no prompt, and a program begins with it; "
                    "export to human-eval, or import with --problems FILE (task_id, prompt)"
                )
            return start + text
        return extract_program(text, own, self.fields.get("entry_point") or None)

    def completion(self, text: str) -> str:
        """The part of a sample's program that follows the problem's own prompt.

        Raises:
            ValueError: the prompt isn't known.
        """
        own = self.fields.get("prompt")
        if self.form == FINISHED:
            return text
        if self.form == ANSWER and (own is None or (self.prompt or own).endswith(own)):
            return text
        if own is None:
            raise ValueError(
                f"{self.place}: {self.name} is a whole program and its prompt is not known, so "
                "what follows it can't be told; export to evalplus or bigcode, or import with "
                "--problems FILE (JSONL of task_id, prompt)"
            )
        program = self.program(text)
        return program[len(own) :] if program.startswith(own) else _FILLER + program
