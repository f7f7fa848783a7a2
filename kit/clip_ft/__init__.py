"""Section 3 of the paper: prototypes, prompts, alignment, projection, training, export (floor 4)."""
