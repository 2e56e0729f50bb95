"""The edits. Each operation is a pure function of one tensor; `rewrite` streams a checkpoint through them."""
