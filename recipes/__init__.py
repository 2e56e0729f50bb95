"""The experiments, as Makefiles: `wsurgery recipe copy` gives one out."""
