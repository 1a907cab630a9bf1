"""What people begin with: a commented study, the skeleton of a plug-in package."""
