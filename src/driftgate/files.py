"""Writing a file in full or not at all."""

from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Replace a file's content by `text`, in UTF-8. The old content stays until the new text is written in full."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
