"""Scripts that run inside the jail, under its bare interpreter: standard library only, nothing of ours is imported."""
