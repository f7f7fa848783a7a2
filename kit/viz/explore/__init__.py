"""A finished run to ask: why a post is predicted as it is, which posts are like it, what would change it."""
