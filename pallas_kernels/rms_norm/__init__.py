"""Add what a block of the model made to the residual stream, and normalize the sum."""
