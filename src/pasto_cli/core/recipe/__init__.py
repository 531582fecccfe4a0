"""What a run is made of, as YAML. No torch."""
