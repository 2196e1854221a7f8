"""SLURM launchers by way of submitit."""
