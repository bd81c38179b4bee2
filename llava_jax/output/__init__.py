"""What every verb writes with: atomic files, console log, HTML pages, intervals. No jax."""
