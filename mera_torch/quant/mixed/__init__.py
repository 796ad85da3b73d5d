"""Mixed precision: which operators cost accuracy, and the fewest to keep out of int8."""
