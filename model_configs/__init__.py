"""Run files for `lm_eval run --config` and study files for `embednoise study`, as packaged data."""
