"""Prompts: templates, label words, and their encoding for one tokenizer. No model here."""
