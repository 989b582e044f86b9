"""Methods × data × shots × seeds: jobs from a file, run here or on Ray, kept line by line, compared in one table."""
