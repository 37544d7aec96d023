"""What people touch: pipeline and command line."""
