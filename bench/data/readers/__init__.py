"""One file per source of images; each defines `read`."""
