"""What is asked and how an answer is verified: verifiers, benchmark readers, tasks made from repositories.

Imports no torch. An answer becomes a verdict in `verifiers`; `build` makes tasks out of a corpus's own repositories.
"""
