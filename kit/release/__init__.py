"""The official files of a release as one typed posts table, its images and its quality (floor 1)."""
