"""The benchmark: cases, timing, rivals, reports. Nothing outside the command line imports it."""
