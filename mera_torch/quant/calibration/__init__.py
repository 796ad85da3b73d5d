"""Calibration: data, what is remembered of it, and the ranges that follow."""
