"""The rayguard binary, as a Python package."""
