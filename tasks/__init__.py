"""The harness's task files; installed as `lm_eval_embednoise.tasks`."""
