"""The code in the documentation is tested, too."""

from blocks import pages

pytest_collect_file = pages("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/*/*.md").pytest()
