"""What a model learns from: sources, languages, licences, quality and the corpus. Imports no torch."""
