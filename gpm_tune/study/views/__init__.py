"""What people are shown of a study: before it runs, while it runs, and afterwards."""
