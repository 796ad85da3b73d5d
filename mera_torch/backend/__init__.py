"""From FX to the DNA and back: capture, partition with reasons, lowering, running."""
