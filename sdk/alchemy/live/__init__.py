"""Parameters that change while a training runs, and the optimizers that follow them."""
