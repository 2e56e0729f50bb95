"""Pictures and tables of what training did: curves, filters, similarity, and the report that gathers them."""
