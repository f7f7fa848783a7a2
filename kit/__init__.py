"""The package behind the notebooks: predict the popularity of social-media posts (SMP Challenge)."""

import warnings

__version__ = "0.1.0"

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm misses widgets that no log could show
