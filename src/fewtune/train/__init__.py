"""The optimisation loop and its losses. No text here."""
