"""What was done and whether it helped, as one page that needs nothing else."""
