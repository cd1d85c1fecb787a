"""Trainings beside each other at equal gradient evaluations: methods that move hyperparameters, and schedules."""
