"""Settings, the training loop, optimisers, schedules, run folders and logs."""
