"""What everything else stands on: files, errors, numbers. Nothing here knows the method."""
