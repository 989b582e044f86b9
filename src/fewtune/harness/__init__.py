"""EleutherAI's lm-evaluation-harness: a tuned model is one of its models. Only `model.py` imports it."""
