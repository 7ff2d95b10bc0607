"""A recipe file becomes stages, stages become cached artifacts."""
