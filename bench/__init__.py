"""Side-by-side measurements of spliff, one command: ``python -m bench``."""
