"""What evaluate.py measures and draws."""
