"""How fast the torch backend is on this CPU: ratios to yardsticks, measured in turns in one process."""
