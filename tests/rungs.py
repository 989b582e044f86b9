"""What a ladder judges, in its order, of one autoregressive PLM and a task with labels."""

EVERY_RUNG = ["zero-shot", "zero-shot calibrated", "in-context", "in-context calibrated", "tuned"]
