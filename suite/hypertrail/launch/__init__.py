"""Many runs: a grid of settings becomes processes or a Slurm array; how far they are; what they found, in one table."""
