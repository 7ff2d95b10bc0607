"""codemill: from repositories to a code model that is adapted, measured and accounted for."""

__version__ = "0.1.0"
