"""Float and quantized graphs: which operators the DNA computes in int8, and rewrites before annotation."""
