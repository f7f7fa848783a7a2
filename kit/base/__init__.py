"""What knows no post: errors, paths, files, machine, processes, progress, metrics (floor 0)."""
