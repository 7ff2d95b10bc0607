"""What every room shares: contract types, records, artifacts, paths, errors, progress. Imports no torch."""
