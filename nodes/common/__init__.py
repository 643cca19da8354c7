"""What several packages of nodes share: files, input declarations, pictures, plots, contact sheets."""
