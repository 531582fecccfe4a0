"""`pasto tune`: a search over keys of a recipe, each trial a run. Begin with `study`."""
