"""Right or wrong: answers against references."""
