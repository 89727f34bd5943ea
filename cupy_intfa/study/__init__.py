"""The study: named questions about INT8 attention, each with its measurement, table, figure and limits."""
