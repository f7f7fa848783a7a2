"""The package behind the notebooks: predict the popularity of social-media posts (SMP Challenge)."""

__version__ = "0.1.0"
