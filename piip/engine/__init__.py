"""Training, evaluation and prediction: one loop for every task."""
