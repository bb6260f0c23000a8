"""Command-line studies; ``python -m studies`` lists them."""
