"""Learning from text: objectives, optimiser, loop, checkpoints."""
