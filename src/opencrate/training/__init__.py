"""Training: one trainer, its tasks, optimizers and callbacks."""
