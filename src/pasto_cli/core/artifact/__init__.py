"""An adapter on disk, on the Hub and in other formats."""
