"""raybust: train, search, certify and attack robust image classifiers on Ray.

The package is a pipeline: config -> data -> method -> train -> checkpoint -> certify / evaluate ->
track -> tune -> report. Importing it loads nothing heavy: stages are imported on use.
"""

__version__ = "0.1.0"
