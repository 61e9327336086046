"""What surrounds a training: its stage and folder, recording, checkpoints, options, seeds, comparison."""
