"""Examples: reading, sampling. No tokens here."""
