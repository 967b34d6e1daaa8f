"""The science: pure torch on flat streams of valid response tokens; imports nothing else of the package."""
