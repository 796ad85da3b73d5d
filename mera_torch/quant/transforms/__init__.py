"""What improves accuracy: rewrites of the float network before calibration, corrections of the int8 one after it."""
