"""References: the float64 oracle, and the integer-exact emulator of the kernels."""
