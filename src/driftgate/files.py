"""Writing a file whole or not at all."""

from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """What was there stays until all of the new text is on the disk."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
