"""Predicted expression: what is predicted, who predicts it, how it is measured, and the protocols that ask for it."""
