"""The main job in stages: recipe, pre-flight, texts, level database, fitness, allocation, report."""
