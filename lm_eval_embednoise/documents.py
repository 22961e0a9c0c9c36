"""Old place of `problems.documents`: task files of users may name its functions by it."""

from lm_eval_embednoise.problems.documents import *  # noqa: F403
