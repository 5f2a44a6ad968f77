"""Tables and figures, one file each: pure functions from records to what a paper prints."""
