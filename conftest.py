"""The code in the documentation is tested, too."""

from blocks import pages

pytest_collect_file = pages("docs/*.md", "docs/*/*.md").pytest()
