"""The method in pure torch, on flat streams of valid response tokens. It imports nothing else of the package."""
