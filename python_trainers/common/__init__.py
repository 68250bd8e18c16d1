"""What the trainers share and no paper mentions: data, networks, runs and their files, plots."""
