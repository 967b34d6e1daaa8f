"""The trainer: one loop that reads like the algorithm, and the state it keeps."""
