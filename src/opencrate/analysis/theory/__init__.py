"""Which of the theory's predictions hold in a model."""
