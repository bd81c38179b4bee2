"""Native checkpoints: Orbax with a SHA-256 of every file; workdirs as models."""
