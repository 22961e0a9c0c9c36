"""What the harness sees: model classes registered by lm_eval_embednoise.plugin."""
